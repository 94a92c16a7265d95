"""Reading a wheel: its members, its RECORD, and where each member lies in the file."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from installer.records import RecordEntry

from overlay_tools.archive.mode import with_mode
from overlay_tools.archive.record import parse_record
from overlay_tools.errors import WheelError

_LINK_MODE = 0o120000
_ANY_X = 0o111  # of a mode: what makes a file executable for anyone, to installers
_NOT_A_WHEEL = "It is not a wheel, or a damaged one: fetch or build it anew."


class WheelReader:
    """A wheel, open for reading; any that holds a member that no wheel should have is refused.

    `members`: what the archive holds, by name, folders too; `dist_info`: the name of its .dist-info folder.
    """

    def __init__(self, path: Path) -> None:
        """Open a wheel.

        Raises WheelError if the file is absent, truncated or not a zip archive, or has a member that is a link, would
        be unpacked outside its folder, appears twice, is encrypted, or is compressed by anything but deflate.
        """
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise WheelError(f"There is no file {path}.", hint="`nox -s build` writes wheels to dist/.") from None
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            why = getattr(error, "strerror", None) or error
            raise WheelError(f"{path} cannot be read as a wheel: {why}.", hint="Fetch or build it anew.") from None
        self.members = {info.filename: info for info in self._zip.infolist()}
        faults = list(_faults(self._zip.infolist()))
        if faults:
            self._zip.close()
            raise WheelError(*(f"{path}: {fault}" for fault in faults), hint="Do not use this wheel.")
        folders = {name.partition("/")[0] for name in self.members if name.partition("/")[0].endswith(".dist-info")}
        if len(folders) != 1:
            self._zip.close()
            raise WheelError(f"{path} has {len(folders)} .dist-info folders; a wheel has one.", hint=_NOT_A_WHEEL)
        self.dist_info = folders.pop()

    def __enter__(self) -> WheelReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def read(self, name: str) -> bytes:
        """Return the content of a member, an `Executable` if an installer makes the file executable.

        Raises WheelError if the wheel has no member of this name, or its bytes are damaged.
        """
        try:
            content = self._zip.read(name)
        except KeyError:
            raise WheelError(f"{self.path} has no {name}.", hint=_NOT_A_WHEEL) from None
        except (zipfile.BadZipFile, zlib.error, EOFError, struct.error) as error:
            raise WheelError(f"{self.path}: {name} is damaged: {error}.", hint="Fetch or build it anew.") from None
        return with_mode(content, executable=bool(self.members[name].external_attr >> 16 & _ANY_X))

    def get(self, name: str) -> bytes | None:
        """Return the content of a member, or None if the wheel has no member of this name.

        Raises WheelError if its bytes are damaged.
        """
        return self.read(name) if name in self.members else None

    def record(self) -> dict[str, RecordEntry]:
        """Return the entries of RECORD by path.

        Raises WheelError if the wheel has no RECORD, or one that is malformed.
        """
        name = f"{self.dist_info}/RECORD"
        return parse_record(self.read(name), f"{self.path}: {name}")

    def spans(self) -> Iterator[tuple[zipfile.ZipInfo, int, int]]:
        """Yield each member, in the order of the archive, with the offsets where it starts and ends.

        A member ends where the next one starts, so a data descriptor that follows it belongs to it.
        """
        infos = sorted(self.members.values(), key=lambda info: info.header_offset)
        ends = [info.header_offset for info in infos[1:]] + [self._zip.start_dir]
        for info, end in zip(infos, ends, strict=True):
            yield info, info.header_offset, end


def _faults(infos: Iterable[zipfile.ZipInfo]) -> Iterator[str]:
    seen = set()
    for info in infos:
        # zipfile cuts a name at a NUL byte; an installer may see the name that the archive really has.
        name = info.orig_filename
        if name in seen:
            yield f"{name} appears twice."
        seen.add(name)
        if name.startswith("/") or "\\" in name or ":" in name or "\0" in name or "/../" in f"/{name}/":
            yield f"{name!r} would be written outside the folder it is unpacked to."
        if (info.external_attr >> 16) & 0o170000 == _LINK_MODE:
            yield f"{name} is a symbolic link."
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            yield f"{name} is encrypted, or compressed by something other than deflate."
