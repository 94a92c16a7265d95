"""Reading a wheel: its members, its RECORD, and where each member lies in the file."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from installer.records import RecordEntry

from overlay_tools.archive.layout import LayoutError, Span, find_fault, find_spans
from overlay_tools.archive.mode import ANY_X, with_mode
from overlay_tools.archive.names import find_name_faults
from overlay_tools.archive.record import parse_record
from overlay_tools.errors import WheelError

_NOT_A_WHEEL = "It is not a wheel, or a damaged one: fetch or build it anew."
_SHOWN = 10  # of the faults of one wheel
# Upstream's wheels unpack to 3 to 4 times their size, and no file of theirs to more than 28 times.
_MOST_TIMES, _ALWAYS_FITS = 100, 1 << 28
# What zipfile raises for an archive that is damaged where it does not look: a name, a date, an extra field, an offset.
_DAMAGED = (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, OverflowError, struct.error)


class WheelReader:
    """A wheel, open for reading; one that two programs could read in two ways is refused.

    `members`: what the archive holds, by name, folders too; `dist_info`: the name of its .dist-info folder.
    """

    def __init__(self, path: Path) -> None:
        """Open a wheel, and compare all that it says of its members; their contents are checked when they are read.

        Raises WheelError if the file is absent, truncated or not a zip archive; if it holds bytes of no member or a
        member that is not what the central directory says; or if it has a member that is no plain file or folder, is
        encrypted, is compressed by anything but deflate, or has a name that `find_name_faults` refuses.
        """
        self.path = path
        try:
            self._file = path.open("rb")
        except FileNotFoundError:
            raise WheelError(f"There is no file {path}.", hint="`nox -s build` writes wheels to dist/.") from None
        except OSError as error:
            raise self._unreadable(error.strerror) from None
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        try:
            with zipfile.ZipFile(self._file) as archive:
                infos = archive.infolist()
        except _DAMAGED as error:
            raise self._unreadable(getattr(error, "strerror", None) or error) from None
        names = [info.orig_filename for info in infos]  # zipfile cuts a name at a NUL byte; an installer may not
        folders = {top for name in names if (top := name.partition("/")[0]).endswith(".dist-info")}
        if len(folders) != 1:
            raise WheelError(f"{self.path} has {len(folders)} .dist-info folders; a wheel has one.", hint=_NOT_A_WHEEL)
        self.dist_info = folders.pop()
        faults = list(find_name_faults(names, self.dist_info))
        if faults := faults or [f"{info.orig_filename} {fault}." for info in infos if (fault := find_fault(info))]:
            raise self._refused(faults)
        self.members = dict(zip(names, infos, strict=True))
        try:
            self._spans = {span.info.orig_filename: span for span in find_spans(self._file.fileno(), infos)}
        except (LayoutError, OSError) as error:
            raise self._refused([f"{error}."]) from None
        size, unpacked = os.fstat(self._file.fileno()).st_size, sum(info.file_size for info in infos)
        if unpacked > max(_ALWAYS_FITS, _MOST_TIMES * size):
            raise self._refused([f"{size:,} bytes would unpack to {unpacked:,}."])

    def _unreadable(self, why: object) -> WheelError:
        return WheelError(f"{self.path} cannot be read as a wheel: {why}.", hint="Fetch or build it anew.")

    def _refused(self, faults: Sequence[str]) -> WheelError:
        more = [f"{len(faults) - _SHOWN} more of its members are refused."] if len(faults) > _SHOWN else []
        return WheelError(
            *(f"{self.path}: {fault}" for fault in [*faults[:_SHOWN], *more]), hint="Do not use this wheel."
        )

    def __enter__(self) -> WheelReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, name: str) -> bytes:
        """Return the content of a member, an `Executable` if an installer makes the file executable.

        Raises WheelError if the wheel has no member of this name, or its bytes are not all of what the wheel says of
        it, and no more.
        """
        if name not in self._spans:
            raise WheelError(f"{self.path} has no {name}.", hint=_NOT_A_WHEEL)
        info, _, start, end, _ = self._spans[name]
        try:
            content = self.read_bytes(start, end)
            if info.compress_type == zipfile.ZIP_DEFLATED:
                deflated = zlib.decompressobj(-zlib.MAX_WBITS)
                content = deflated.decompress(content, info.file_size + 1)
                if not deflated.eof or deflated.unused_data:
                    raise ValueError("its compressed bytes do not end where it does")
            if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
                raise ValueError("it has another size or checksum than the wheel says")
        except (zlib.error, ValueError, OSError) as error:
            raise WheelError(f"{self.path}: {name} is damaged: {error}.", hint="Fetch or build it anew.") from None
        return with_mode(content, executable=bool(info.external_attr >> 16 & ANY_X))

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

    def spans(self) -> Iterator[Span]:
        """Yield where each member lies, in the order of the archive."""
        yield from self._spans.values()

    def read_bytes(self, start: int, end: int) -> bytes:
        """Return bytes of the file."""
        return os.pread(self._file.fileno(), end - start, start)
