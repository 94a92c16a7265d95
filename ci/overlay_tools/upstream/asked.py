"""Releases as a person names them: a version, a version and an index, or the paths of wheels."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from overlay_tools import console
from overlay_tools.errors import LockError, UsageError
from overlay_tools.upstream.index import query_release
from overlay_tools.upstream.index_url import checked_index
from overlay_tools.upstream.lockfile import Lock, Release
from overlay_tools.upstream.wheel_files import read_release, version_of


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedRelease:
    """One release that is to be looked up: in the files `paths`, or on `index`, "" for the one that is configured."""

    version: str
    paths: tuple[str, ...] = ()
    index: str = ""

    @classmethod
    def again(cls, release: Release) -> AskedRelease:
        """Return a locked release as one to be looked up where the lock says."""
        paths = tuple(str(wheel.file) for wheel in release.wheels if wheel.path)
        return cls(version=release.version, paths=paths, index=release.index)

    def look_up(self, root: Path) -> Release:
        """Return what its index or its files say of it; `root` is the checkout.

        Raises OverlayError of the kind that fits.
        """
        with console.step(f"Look up sglang {self.version}"):
            return read_release(self.paths, root) if self.paths else query_release(self.version, self.index)

    def words(self) -> str:
        """Return what names it on the command line."""
        if self.paths:
            return shlex.join(self.paths)
        return f"{self.version} --index {shlex.quote(self.index)}" if self.index else self.version


def asked_releases(words: Sequence[str], index: str | None) -> list[AskedRelease]:
    """Return the releases that a command line names; all files of one release are one.

    Raises UsageError or LockError if a word names none, or a release is named in two ways.
    """
    where = "" if index is None else checked_index(index)
    files: dict[str, list[str]] = {}
    versions: list[str] = []
    for word in words:
        if word.endswith(".whl") or "/" in word:
            files.setdefault(version_of(word), []).append(word)
        else:
            versions.append(_canonical(word))
    if index is not None and files:
        raise UsageError("--index is for a VERSION; a file is where its path says.", hint="Name one or the other.")
    if twice := [version for version in versions if version in files]:
        raise LockError(
            *(f"sglang {version} is named by its version and by a file." for version in twice),
            hint="A release comes from one place: name one.",
        )
    return [AskedRelease(version=version, index=where) for version in dict.fromkeys(versions)] + [
        AskedRelease(version=version, paths=tuple(dict.fromkeys(paths))) for version, paths in files.items()
    ]


def from_one_place(asked: AskedRelease, lock: Lock) -> AskedRelease:
    """Return a release with the place that the lock has of it, if it is locked already and none is named.

    Raises LockError if another place is named.
    """
    if asked.version not in lock:
        return asked
    locked = lock[asked.version]
    again = AskedRelease.again(locked)
    if not asked.paths and not asked.index:
        return again
    if bool(asked.paths) != bool(again.paths) or asked.index != again.index:
        raise LockError(
            f"sglang {asked.version} is locked from {locked.place}.",
            hint=f'To lock it from elsewhere, take [release."{asked.version}"] out of upstream.lock first.',
        )
    return asked


def say_files_elsewhere(release: Release) -> None:
    """Say which wheels of a release are outside the checkout, where others may not have them."""
    for wheel in release.wheels:
        if Path(wheel.path).is_absolute():
            console.line(f"{wheel.path} is outside the checkout: whoever else builds on it needs it at the same place.")


def _canonical(version: str) -> str:
    try:
        return str(Version(version))
    except InvalidVersion:
        raise LockError(
            f"{version!r} is not a version.", hint="Name a release of sglang, as 0.5.23, or the path of a wheel."
        ) from None
