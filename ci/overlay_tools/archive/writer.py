"""Writing a wheel around the compressed bytes of a base's members.

It follows PKWARE's APPNOTE.TXT 6.3.10: 4.3.7 (local header), 4.3.12 (central directory), 4.3.16 (its end). A member is
its header, its name and its bytes: extra fields, ZIP64's too, and data descriptors are read in more than one way.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import BinaryIO

from overlay_tools.archive.layout import DESCRIPTOR, END, LOCAL, UTF8, VERSION
from overlay_tools.archive.mode import is_executable
from overlay_tools.archive.reader import WheelReader
from overlay_tools.errors import WheelError

_CENTRAL = struct.Struct("<4s4B4H3L5H2L")
_MOST_BYTES, _MOST_MEMBERS = 0xFFFFFFFF, 0xFFFF  # what is as large as that is ZIP64's


class WheelWriter:
    """Writes one wheel from front to back, and hashes it on the way.

    New members are stored uncompressed: what deflate makes of them depends on the version of zlib, and every machine
    must make the same wheel. `size` and `sha256` are those of what has been written so far.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self._central: list[bytes] = []
        self._names: list[str] = []
        self.size = 0

    @property
    def sha256(self) -> str:
        """Return the sha256 of what has been written, in hexadecimal."""
        return self._hash.hexdigest()

    def copy(self, base: WheelReader, names: Mapping[str, str]) -> None:
        """Copy members of a base in the order in which it has them, their compressed bytes as they are.

        Parameters: `names`, the new name of each member to copy; most keep their own.
        Raises WheelError if the archive gets too large.
        """
        run_start = run_end = 0
        for span in base.spans():
            name = names.get(span.info.filename)
            if name is None:
                continue
            if name == span.info.filename and span.plain:
                if span.start != run_end:
                    self._copy_range(base, run_start, run_end)
                    run_start = span.start
                self._add_central(span.info, name, self.size + span.start - run_start)
                run_end = span.end
                continue
            self._copy_range(base, run_start, run_end)
            run_start = run_end = span.end
            self._write_header(span.info, name)
            self._copy_range(base, span.data, span.end)
        self._copy_range(base, run_start, run_end)

    def add(self, name: str, content: bytes) -> None:
        """Add a new member, with the mode that goes with its content and the date of all new members."""
        info = zipfile.ZipInfo(name)
        info.create_system, info.create_version = 3, VERSION
        info.external_attr = (0o100755 if is_executable(content) else 0o100644) << 16
        info.CRC, info.file_size, info.compress_size = zlib.crc32(content), len(content), len(content)
        self._write_header(info, name)
        self._write(content)

    def finish(self) -> None:
        """Write the central directory.

        Raises WheelError if a name was written twice, or the archive is too large.
        """
        if len(set(self._names)) != len(self._names):
            twice = sorted({name for name in self._names if self._names.count(name) > 1})
            raise WheelError(*(f"{name} would appear twice." for name in twice), hint="Rename one of them.")
        start, count = self.size, len(self._central)
        directory = b"".join(self._central)
        if start + len(directory) >= _MOST_BYTES:
            raise _too_large()
        self._write(directory)
        self._write(END.pack(b"PK\5\6", 0, 0, count, count, len(directory), start, 0))

    def _write_header(self, info: zipfile.ZipInfo, name: str) -> None:
        """Write a local header of its own for a member, and its name; its bytes are to follow."""
        self._add_central(info, name, self.size)
        raw = name.encode("utf-8")
        sizes = info.CRC, info.compress_size, info.file_size, len(raw), 0
        head = LOCAL.pack(b"PK\3\4", VERSION, _flags(info, name), info.compress_type, *_moment(info), *sizes)
        self._write(head + raw)

    def _copy_range(self, source: WheelReader, start: int, end: int) -> None:
        for at in range(start, end, 1 << 20):
            self._write(source.read_bytes(at, min(at + (1 << 20), end)))

    def _add_central(self, info: zipfile.ZipInfo, name: str, offset: int) -> None:
        if max(offset, info.file_size, info.compress_size) >= _MOST_BYTES or len(self._central) + 1 >= _MOST_MEMBERS:
            raise _too_large()
        raw = name.encode("utf-8")
        self._names.append(name)
        self._central.append(
            _CENTRAL.pack(
                b"PK\1\2", info.create_version, info.create_system, VERSION, 0, _flags(info, name), info.compress_type,
                *_moment(info), info.CRC, info.compress_size, info.file_size, len(raw), 0, 0, 0, info.internal_attr,
                info.external_attr, offset,
            ) + raw
        )  # fmt: skip

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._hash.update(data)
        self.size += len(data)


def _flags(info: zipfile.ZipInfo, name: str) -> int:
    return info.flag_bits & ~DESCRIPTOR | (0 if name.isascii() else UTF8)


def _moment(info: zipfile.ZipInfo) -> tuple[int, int]:
    """Return a member's time and date as the format has them."""
    year, month, day, hour, minute, second = info.date_time
    return hour << 11 | minute << 5 | second // 2, (year - 1980) << 9 | month << 5 | day


def _too_large() -> WheelError:
    return WheelError("The wheel would have to be a ZIP64 archive: it is too large.", hint="Add less to it.")
