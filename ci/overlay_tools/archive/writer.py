"""Writing a wheel around the compressed bytes of a base's members.

It follows PKWARE's APPNOTE.TXT 6.3.10: 4.3.7 (local header), 4.3.12 (central directory), 4.3.16 (its end).
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import BinaryIO

from overlay_tools.archive.mode import is_executable
from overlay_tools.archive.reader import WheelReader
from overlay_tools.errors import WheelError

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s4B4H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_UTF8 = 0x800
_EPOCH = 0x21  # 1980-01-01, the earliest date that the format can hold


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
        """Add a new member, with the mode that goes with its content and the date of all new members."""
        info = zipfile.ZipInfo(name)
        info.create_system, info.create_version, info.extract_version = 3, 20, 20
        info.external_attr = (0o100755 if is_executable(content) else 0o100644) << 16
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
        if len(set(self._names)) != len(self._names):
            twice = sorted({name for name in self._names if self._names.count(name) > 1})
            raise WheelError(*(f"{name} would appear twice." for name in twice), hint="Rename one of them.")
        start, count = self.size, len(self._central)
        directory = b"".join(self._central)
        if count >= 0xFFFF or start + len(directory) >= 0xFFFFFFFF:
            raise WheelError("The wheel would have to be a ZIP64 archive: it is too large.", hint="Add less to it.")
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
        self._names.append(name)
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


def _encode(name: str, flags: int) -> bytes:
    return name.encode("utf-8" if flags & _UTF8 or name.isascii() else "cp437")  # ASCII is the same in both
