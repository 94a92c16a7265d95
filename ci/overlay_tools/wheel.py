"""Wheels: read a base, write a new one around the compressed bytes of what did not change.

The writer follows PKWARE's APPNOTE.TXT 6.3.10: 4.3.7 (local header), 4.3.12 (central directory), 4.3.16 (its end).
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from overlay_tools.errors import WheelError

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s4B4H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_UTF8 = 0x800
_EPOCH = 0x21  # 1980-01-01, the oldest date that the format can hold
_LINK_MODE = 0o120000


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of a RECORD: path, hash (as "sha256=..."), size in bytes; the last two empty for RECORD itself."""

    path: str
    digest: str
    size: str


class BaseWheel:
    """A wheel that is read: checked on opening for members that no wheel should have."""

    def __init__(self, path: Path) -> None:
        """Open a wheel.

        Raises WheelError if it is truncated, no zip archive, or has a member that is a link, escapes its folder, is
        there twice, is encrypted or is compressed in a way of its own.
        """
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            raise WheelError(f"{path} cannot be read as a wheel: {error}.", hint="Fetch or build it anew.") from None
        self.members = {info.filename: info for info in self._zip.infolist()}
        faults = list(_faults(self._zip.infolist()))
        if faults:
            self._zip.close()
            raise WheelError(*(f"{path}: {fault}" for fault in faults), hint="Do not use this wheel.")
        folders = {name.partition("/")[0] for name in self.members if name.partition("/")[0].endswith(".dist-info")}
        if len(folders) != 1:
            self._zip.close()
            raise WheelError(f"{path} has {len(folders)} .dist-info folders instead of one.", hint="It is no wheel.")
        self.dist_info = folders.pop()

    def __enter__(self) -> BaseWheel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def read(self, name: str) -> bytes:
        """Return the content of a member.

        Raises WheelError if there is none of this name, or its bytes are damaged.
        """
        try:
            return self._zip.read(name)
        except KeyError:
            raise WheelError(f"{self.path} has no {name}.", hint="It is no wheel, or a damaged one.") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, struct.error) as error:
            raise WheelError(f"{self.path}: {name} is damaged: {error}.", hint="Fetch or build it anew.") from None

    def record(self) -> dict[str, Row]:
        """Return the lines of RECORD by path."""
        return parse_record(self.read(f"{self.dist_info}/RECORD").decode("utf-8"))

    def spans(self) -> Iterator[tuple[zipfile.ZipInfo, int, int]]:
        """Yield each member in the order of the archive with the first byte of its local header and the byte after it.

        A member ends where the next begins, so that a data descriptor behind it belongs to it.
        """
        infos = sorted(self.members.values(), key=lambda info: info.header_offset)
        ends = [info.header_offset for info in infos[1:]] + [self._zip.start_dir]
        for info, end in zip(infos, ends, strict=True):
            yield info, info.header_offset, end


class WheelWriter:
    """Writes one wheel, front to back, and hashes it on the way.

    New members are stored as they are: how bytes compress depends on the zlib at hand, and the same wheel must come out
    of every machine. `names`, `sha256` and `size` are those of what has been written.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self._central: list[bytes] = []
        self.names: list[str] = []
        self.size = 0

    @property
    def sha256(self) -> str:
        """Return the sha256 of what has been written, in hexadecimal."""
        return self._hash.hexdigest()

    def copy(self, base: BaseWheel, names: Mapping[str, str]) -> None:
        """Copy members of a base as they are, compressed bytes and all.

        Parameters: `names`, the members to copy, each with the name it gets; most keep theirs.
        """
        with base.path.open("rb") as source:
            run_start = run_end = -1
            for info, start, end in base.spans():
                if info.filename not in names:
                    continue
                renamed = names[info.filename] != info.filename
                if start != run_end or renamed:
                    self._copy_range(source, run_start, run_end)
                    run_start = start
                if renamed:
                    self._copy_renamed(source, info, names[info.filename], start, end)
                    run_start = run_end = -1
                    continue
                self._add_central(info, info.filename, self.size + start - run_start)
                run_end = end
            self._copy_range(source, run_start, run_end)

    def add(self, name: str, content: bytes) -> None:
        """Add a new member with the mode of an ordinary file and the date that all new members have."""
        info = zipfile.ZipInfo(name)
        info.create_system, info.create_version, info.extract_version = 3, 20, 20
        info.external_attr = 0o100644 << 16
        info.flag_bits = 0 if name.isascii() else _UTF8
        info.CRC, info.file_size, info.compress_size = zlib.crc32(content), len(content), len(content)
        raw = _encode(name, info.flag_bits)
        self._add_central(info, name, self.size)
        header = (b"PK\3\4", 20, info.flag_bits, 0, 0, _EPOCH, info.CRC, len(content), len(content), len(raw), 0)
        self._write(_LOCAL.pack(*header) + raw + content)

    def finish(self) -> None:
        """Write the central directory.

        Raises WheelError if a name was written twice, or the archive is too large.
        """
        if len(set(self.names)) != len(self.names):
            raise WheelError(*(f"{name} would be there twice." for name in self.names if self.names.count(name) > 1))
        start, count = self.size, len(self._central)
        directory = b"".join(self._central)
        if count >= 0xFFFF or start + len(directory) >= 0xFFFFFFFF:
            raise WheelError("The wheel would be too large for the zip format without its 64-bit extension.")
        self._write(directory)
        self._write(_END.pack(b"PK\5\6", 0, 0, count, count, len(directory), start, 0))

    def _copy_renamed(self, source: BinaryIO, info: zipfile.ZipInfo, name: str, start: int, end: int) -> None:
        source.seek(start)
        header = list(_LOCAL.unpack(source.read(_LOCAL.size)))
        source.seek(header[9], io.SEEK_CUR)
        rest = source.read(end - start - _LOCAL.size - header[9])
        raw = _encode(name, info.flag_bits)
        header[9] = len(raw)
        self._add_central(info, name, self.size)
        self._write(_LOCAL.pack(*header) + raw + rest)

    def _copy_range(self, source: BinaryIO, start: int, end: int) -> None:
        source.seek(max(start, 0))
        while start < end:
            chunk = source.read(min(end - start, 1 << 20))
            self._write(chunk)
            start += len(chunk)

    def _add_central(self, info: zipfile.ZipInfo, name: str, offset: int) -> None:
        raw = _encode(name, info.flag_bits)
        self.names.append(name)
        date = (info.date_time[0] - 1980) << 9 | info.date_time[1] << 5 | info.date_time[2]
        time = info.date_time[3] << 11 | info.date_time[4] << 5 | info.date_time[5] // 2
        self._central.append(
            _CENTRAL.pack(
                b"PK\1\2", info.create_version, info.create_system, info.extract_version, info.reserved, info.flag_bits,
                info.compress_type, time, date, info.CRC, info.compress_size, info.file_size, len(raw), len(info.extra),
                len(info.comment), 0, info.internal_attr, info.external_attr, offset,
            ) + raw + info.extra + info.comment
        )  # fmt: skip

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._hash.update(data)
        self.size += len(data)


def parse_record(text: str) -> dict[str, Row]:
    """Return the lines of a RECORD by path.

    Raises WheelError if a line has not three columns, or a path is there twice.
    """
    rows: dict[str, Row] = {}
    for number, line in enumerate(csv.reader(io.StringIO(text, newline="")), 1):
        if len(line) != 3 or line[0] in rows:
            raise WheelError(f"RECORD:{number}: {','.join(line)!r} is malformed or there twice.")
        rows[line[0]] = Row(path=line[0], digest=line[1], size=line[2])
    return rows


def format_record(rows: Iterable[Row]) -> bytes:
    """Return the text of a RECORD."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows((row.path, row.digest, row.size) for row in rows)
    return text.getvalue().encode("utf-8")


def record_row(path: str, content: bytes) -> Row:
    """Return the line of RECORD for a file."""
    return Row(path=path, digest=record_digest(content), size=str(len(content)))


def record_digest(content: bytes) -> str:
    """Return a hash as RECORD writes it: sha256, URL-safe base64 without padding."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode("ascii")


def _faults(infos: Iterable[zipfile.ZipInfo]) -> Iterator[str]:
    seen = set()
    for info in infos:
        # zipfile cuts a name at a NUL; the name as the archive has it is what an installer may see.
        name = info.orig_filename
        if name in seen:
            yield f"{name} is there twice."
        seen.add(name)
        if name.startswith("/") or "\\" in name or ":" in name or "\0" in name or "/../" in f"/{name}/":
            yield f"{name!r} would be written outside the folder it is unpacked to."
        if (info.external_attr >> 16) & 0o170000 == _LINK_MODE:
            yield f"{name} is a symbolic link."
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            yield f"{name} is encrypted, or compressed otherwise than by deflate."


def _encode(name: str, flags: int) -> bytes:
    return name.encode("utf-8" if flags & _UTF8 else "cp437")
