"""Wheels: read a base, write a new one around the compressed bytes of what did not change.

The writer follows PKWARE's APPNOTE.TXT 6.3.10: 4.3.7 (local header), 4.3.12 (central directory), 4.3.16 (its end).
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from overlay_tools.archive.record import RecordRow, parse_record
from overlay_tools.errors import WheelError

_LINK_MODE = 0o120000


class WheelReader:
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

    def __enter__(self) -> WheelReader:
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

    def record(self) -> dict[str, RecordRow]:
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
