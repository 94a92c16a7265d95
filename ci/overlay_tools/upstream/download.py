"""Base wheels: those of an index fetched with pip and kept in a cache outside the checkout, files where they are.

Each is checked against the lock whenever it is used.
"""

from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from overlay_tools.archive.reader import WheelReader
from overlay_tools.archive.record import PROVING, proves
from overlay_tools.errors import FetchError, ToolError, WheelError
from overlay_tools.upstream.installers import pip_download
from overlay_tools.upstream.lockfile import LockedWheel, Release
from overlay_tools.user_files import naming

_RELOCK = "Put the locked file back, or lock the one that is there: `nox -s lock -- PATH`."
_CHECK = "Check the network, and that the index still has this file"
_MOVE = "SGLANG_OVERLAY_CACHE names another folder for it."


def fetch(release: Release, wheel: LockedWheel, cache: Path, source: str = "upstream.lock", hint: str = "") -> Path:
    """Return the path of a base wheel: where the lock says, or in the cache, fetched first if it is not there.

    The file has the locked size and sha256, and its members are what its RECORD says.
    Parameters: `source`, what names a file where it is, if the lock does not yet; `hint`, what to do if it is not had.
    Raises FetchError if the index does not have it, does not answer, or gives another file, or the file is gone or is
    another one; WheelError if it is damaged.
    """
    if wheel.path:
        check(wheel.file, wheel, hint or _RELOCK, source)
        _check_once(wheel.file, cache / wheel.sha256)
        return wheel.file
    path = cache / wheel.sha256 / wheel.name
    if not _is_there(path):
        _fill(path, release, wheel, cache, hint)
    check(path, wheel, f"Delete {path} and run this again to fetch it anew.")
    _check_once(path, cache / wheel.sha256)
    return path


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise FetchError(f"The cache of base wheels cannot be used: {path}: {error.strerror}.", hint=_MOVE) from None
    return True


def _fill(path: Path, release: Release, wheel: LockedWheel, cache: Path, hint: str) -> None:
    """Put a base wheel into the cache, whole or not at all."""
    part = path.parent / ".part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".lock"):  # another command may fetch it now, or may have been killed at it
            shutil.rmtree(part, ignore_errors=True)
            if path.exists():
                return
            try:
                with naming(cache):
                    part.mkdir()
                    _download(release, wheel, part, hint)
                    (part / wheel.name).replace(path)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        what = f"The cache of base wheels cannot be used: {error.filename or cache}: {error.strerror}."
        raise FetchError(what, hint=_MOVE) from None


def check(path: Path, wheel: LockedWheel, hint: str = "", source: str = "upstream.lock") -> None:
    """Check that a file has the size and the sha256 of a locked wheel.

    Parameters: `source`, what an error says that these are from.
    Raises FetchError if it has not.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FetchError(f"{path}, which {source} names, cannot be read: {error.strerror}.", hint=hint) from None
    if len(data) != wheel.size:
        raise FetchError(
            f"{path}: {source} says {wheel.size} bytes, the file has {len(data)}: it is truncated, or another file.",
            hint=hint,
        )
    digest = hashlib.sha256(data).hexdigest()
    if digest != wheel.sha256:
        raise FetchError(f"{path}: {source} says sha256 {wheel.sha256}, the file has {digest}.", hint=hint)


def check_members(path: Path) -> None:
    """Check every member of a base wheel: that its bytes are whole, and what RECORD says of them.

    Raises WheelError if one is damaged or is not what RECORD says.
    """
    with WheelReader(path) as wheel:
        record, faults = wheel.record(), []
        for name in dict.fromkeys([*wheel.members, *record]):
            content, digest = wheel.get(name), record[name].hash_ if name in record else None
            if digest and digest.name in PROVING and (content is None or not proves(digest, content)):
                faults.append(f"{path}: {name} is not what RECORD says.")
    if faults:
        raise WheelError(*faults, hint="Lock another wheel.")


def _check_once(path: Path, folder: Path) -> None:
    """Check the members of a base wheel, and note that: its locked hash shows ever after that it is the same file.

    A build copies members without reading them; to read all takes several times as long as the rest of it.
    Parameters: `folder`, the one of the cache for wheels with this sha256, where it is noted.
    """
    noted = folder / "members-checked"
    if noted.exists():
        return
    check_members(path)
    with suppress(OSError):  # where the cache cannot be written to, it is checked each time
        folder.mkdir(parents=True, exist_ok=True)
        noted.touch()


def _download(release: Release, wheel: LockedWheel, folder: Path, hint: str) -> None:
    hint = hint or f"{_CHECK}: `nox -s lock -- --check {release.version}`."
    try:
        pip_download(f"sglang=={release.version}", wheel, release.index, folder)
    except ToolError as error:
        raise FetchError(f"{wheel.name} could not be fetched from {release.place}:\n{error}", hint=hint) from None
    if not (folder / wheel.name).exists():
        got = ", ".join(sorted(path.name for path in folder.glob("*.whl"))) or "nothing"
        raise FetchError(f"pip fetched {got}, not {wheel.name}.", hint=hint)
