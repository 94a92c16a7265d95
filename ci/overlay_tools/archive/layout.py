"""Where a wheel's members lie in its file, which holds nothing else: what a check skips, an installer may still read.

It follows PKWARE's APPNOTE.TXT 6.3.10: 4.3.7 (local header), 4.3.9 (data descriptor), 4.3.14 to 4.3.16 (end records),
4.5.3 (ZIP64), 4.6.9 (Unicode path).
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

LOCAL = struct.Struct("<4s5H3L2H")
END = struct.Struct("<4s4H2LH")
UTF8, DESCRIPTOR = 0x800, 0x8
VERSION = 20  # of the format: what deflate and folders need
_LEVELS = 0x6  # how hard deflate tried
_CENTRAL_SIZE = 46
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ZIP64, _UNICODE_PATH = 0x1, 0x7075  # extra fields
_FULL = 0xFFFFFFFF  # of a size or an offset: ZIP64 has the true one
_LINK, _FILE, _DIRECTORY = 0o120000, 0o100000, 0o040000


class Span(NamedTuple):
    """A member, and the offsets where it starts, where its compressed bytes do, and where these end.

    `plain`: whether there is nothing beside its header, its name and its bytes, and the header is as ours are.
    """

    info: zipfile.ZipInfo
    start: int
    data: int
    end: int
    plain: bool


class LayoutError(Exception):
    """Say what is wrong with an archive, in words that follow its path."""


def raw_name(info: zipfile.ZipInfo) -> bytes:
    """Return a member's name as the archive has it, if that is ASCII or said to be UTF-8."""
    return info.orig_filename.encode("utf-8")


def find_fault(info: zipfile.ZipInfo) -> str:
    """Return what makes a member one that no wheel has, "" if nothing does."""
    kind = (info.external_attr >> 16) & 0o170000
    folder = info.orig_filename.endswith("/")
    if kind == _LINK:
        return "is a symbolic link"
    if kind not in (0, _DIRECTORY if folder else _FILE):
        return "is neither a file nor a folder"
    if folder and info.file_size:
        return "is a folder with a content"
    if info.flag_bits & ~(UTF8 | DESCRIPTOR | _LEVELS) or info.compress_type not in (
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
    ):
        return "is encrypted, or compressed by something other than deflate"
    if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
        return "has two sizes"
    if not info.orig_filename.isascii() and not info.flag_bits & UTF8:
        return "has a name that is not said to be UTF-8"
    if info.volume:
        return "is on another disk"
    return ""


def find_spans(file: int, infos: Sequence[zipfile.ZipInfo]) -> list[Span]:
    """Return where the members of an archive lie, in the order of the file.

    Parameters: `file`, its descriptor; `infos`, what the central directory says.
    Raises LayoutError if the central directory is not what the records at the end say, or a member is not what the
    central directory says; or if a byte of the file belongs to none of them, or to two.
    """
    directory = _directory_start(file, infos)
    infos = sorted(infos, key=lambda info: info.header_offset)
    ends = [info.header_offset for info in infos[1:]] + [directory]
    spans, at = [], 0
    for info, end in zip(infos, ends, strict=True):
        if info.header_offset != at:
            raise LayoutError(f"{_FOREIGN} before {info.orig_filename}")
        span = _span(file, info)
        if not info.flag_bits & DESCRIPTOR:
            at = span.end
        elif os.pread(file, end - span.end, span.end) in _descriptors(info):
            at = end
        else:
            raise LayoutError(f"the size or the checksum after {info.orig_filename} is not what its directory says")
        spans.append(span)
    if at != directory:
        raise LayoutError(f"{_FOREIGN} before its directory")
    return spans


_FOREIGN = "it has bytes that belong to no member, or to two,"


def _directory_start(file: int, infos: Sequence[zipfile.ZipInfo]) -> int:
    """Return where the central directory starts: it ends where the records of the end start, which end the file."""
    size = os.fstat(file).st_size
    end = size - END.size
    start: int
    signature, *disks, on_disk, count, length, start, comment = END.unpack(_read(file, end, END.size))
    if signature != b"PK\5\6" or comment:
        raise LayoutError("it has a comment, or bytes after its end")
    locator = os.pread(file, _LOCATOR.size, end - _LOCATOR.size)
    if locator.startswith(b"PK\6\7"):
        end -= _LOCATOR.size + _END64.size
        if _LOCATOR.unpack(locator) != (b"PK\6\7", 0, end, 1):
            raise LayoutError("the records at its end do not agree")
        signature, room, _, _, *wide = _END64.unpack(_read(file, end, _END64.size))
        narrow = [*disks, on_disk, count, length, start]
        full = [0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, _FULL, _FULL]
        if (signature, room) != (b"PK\6\6", _END64.size - 12) or any(
            old not in (new, most) for old, new, most in zip(narrow, wide, full, strict=True)
        ):
            raise LayoutError("the records at its end do not agree")
        *disks, on_disk, count, length, start = wide
    entries = sum(_CENTRAL_SIZE + len(raw_name(info)) + len(info.extra) + len(info.comment) for info in infos)
    if any(disks) or not on_disk == count == len(infos) or not length == entries == end - start:
        raise LayoutError("the records at its end do not agree with its directory")
    return start


def _span(file: int, info: zipfile.ZipInfo) -> Span:
    """Return where a member lies, once its local header says what the central directory does."""
    raw, start, name = raw_name(info), info.header_offset, info.orig_filename
    header = _read(file, start, LOCAL.size + len(raw))
    signature, version, flags, method, _, _, crc, packed, size, length, more = LOCAL.unpack(header[: LOCAL.size])
    if signature != b"PK\3\4" or length != len(raw) or header[LOCAL.size :] != raw:
        raise LayoutError(f"{name} has another name at its own place")
    fields = _extra_fields(_read(file, start + len(header), more) if more else b"", name)
    if _UNICODE_PATH in fields or _UNICODE_PATH in _extra_fields(info.extra, name):
        raise LayoutError(f"{name} has a second name")
    wide = fields.get(_ZIP64, b"")
    if _FULL in (packed, size) and len(wide) >= 16:
        size, packed = struct.unpack("<2Q", wide[:16])
    told, known = (flags, method, crc, packed, size), (info.flag_bits, info.compress_type)
    content = info.CRC, info.compress_size, info.file_size
    if told != (*known, *content) and not (flags & DESCRIPTOR and told == (*known, 0, 0, 0)):
        raise LayoutError(f"{name} has other sizes, flags or another checksum at its own place")
    data = start + len(header) + more
    plain = not more and not flags & DESCRIPTOR and version == VERSION
    return Span(info, start, data, data + info.compress_size, plain)


def _extra_fields(extra: bytes, name: str) -> dict[int, bytes]:
    fields = {}
    while extra:
        kind, length = struct.unpack("<2H", extra[:4].ljust(4, b"\xff"))
        if 4 + length > len(extra):
            raise LayoutError(f"the extra fields of {name} are cut short")
        fields[kind] = extra[4 : 4 + length]
        extra = extra[4 + length :]
    return fields


def _descriptors(info: zipfile.ZipInfo) -> list[bytes]:
    """Return the forms that a member's data descriptor may have."""
    content = info.CRC, info.compress_size, info.file_size
    forms = [struct.pack("<L2Q", *content)]
    if max(content) <= _FULL:
        forms.append(struct.pack("<3L", *content))
    return [*forms, *(b"PK\7\10" + form for form in forms)]


def _read(file: int, start: int, size: int) -> bytes:
    data = os.pread(file, size, start) if start >= 0 else b""
    if len(data) != size:
        raise LayoutError("it is cut short")
    return data
