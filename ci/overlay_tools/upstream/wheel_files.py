"""A release whose wheels are files: what they are, and what their own metadata pins."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from email.parser import HeaderParser
from pathlib import Path

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from overlay_tools.archive.reader import WheelReader
from overlay_tools.errors import LockError
from overlay_tools.upstream.download import check_members
from overlay_tools.upstream.lockfile import PYTHONS, LockedWheel, Release, tags_of, wanted
from overlay_tools.upstream.requirements import make_release

_NAME = "Name wheels of sglang, as wheels/sglang-0.5.24.dev3+gabc-cp312-cp312-linux_x86_64.whl."


def version_of(path: str) -> str:
    """Return the version of sglang that a wheel's file name gives.

    Raises LockError if it is not the file name of a wheel of sglang.
    """
    name = Path(path).name
    try:
        project, version, _, _ = parse_wheel_filename(name)
    except InvalidWheelFilename:
        raise LockError(f"{path} is not named as a wheel is.", hint=_NAME) from None
    if project != "sglang":
        raise LockError(
            f"{path} is a wheel of {project}, not of sglang.",
            hint="Where that is a fork of sglang, `nox -s import -- PATH` brings in what it changed.",
        )
    return str(version)


def read_release(paths: Sequence[str], root: Path) -> Release:
    """Return the release whose wheels are files, as the lock of the checkout at `root` is to have it.

    Parameters: `paths`, as a person gives them.
    Raises LockError or WheelError if one is not there, is none of a release of sglang that can be locked, or is not of
    the same release as the others.
    """
    releases = [_read_one(path, root) for path in paths]
    first, wheels = releases[0], sorted((release.wheels[0] for release in releases), key=lambda wheel: wheel.name)
    for path, release in zip(paths, releases, strict=True):
        if replace(release, wheels=()) != replace(first, wheels=()):
            raise LockError(
                f"{paths[0]} and {path} are of different releases: they differ in version, Python or in what they pin.",
                hint="Name wheels of one release, made from the same sources.",
            )
    names = [wheel.name for wheel in wheels]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise LockError(*(f"Two files are named {name}." for name in twice), hint="Name one of them.")
    return replace(first, wheels=tuple(wheels))


def _read_one(path: str, root: Path) -> Release:
    version, name = version_of(path), Path(path).name
    if not wanted(name):
        raise LockError(
            f"{path} is not for CPython {PYTHONS[0]} to {PYTHONS[-1]} on Linux.", hint="Name a wheel that is."
        )
    if not Path(path).is_file():
        raise LockError(f"There is no file {path}.", hint=_NAME)
    file = _absolute(Path(path))
    with WheelReader(file) as wheel:
        try:
            metadata = HeaderParser().parsestr(wheel.read(f"{wheel.dist_info}/METADATA").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise LockError(f"{path}: METADATA: {error}.", hint="Fetch or build the wheel anew.") from None
        said = (canonicalize_name(metadata.get("Name", "")), metadata.get("Version", ""))
        if said != ("sglang", version):
            raise LockError(
                f"{path} is named as a wheel of sglang {version}, but its METADATA says {' '.join(said)}.",
                hint="Give it the name that it was built with.",
            )
    check_members(file)
    data = file.read_bytes()
    here = _absolute(root)
    locked = LockedWheel(
        name=name,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        tags=tuple(tags_of(name)),
        path=(file.relative_to(here) if file.is_relative_to(here) else file).as_posix(),
        root=root,
    )
    requires = metadata.get_all("Requires-Dist", [])
    return make_release(version, metadata.get("Requires-Python", ""), requires, [locked])


def _absolute(path: Path) -> Path:
    """Return a path from the root on, without "..", and with links as they are: they may lead anywhere tomorrow."""
    return Path(os.path.abspath(path))  # noqa: PTH100
