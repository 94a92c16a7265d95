"""upstream.lock: the upstream releases that this overlay builds on, with the hash of each of their wheels."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomlkit
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import compatible_tags, cpython_tags, parse_tag
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from overlay_tools.errors import LockError
from overlay_tools.upstream.index_url import fault_of_index
from overlay_tools.user_files import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PLATFORMS = ("x86_64", "aarch64")
SCHEMA = 1
REWRITE = "Restore the file from git, or write the release anew with `nox -s lock -- VERSION`."
_HEAD = "# Written by `nox -s lock -- VERSION`. Do not edit."
_RELEASE_KEYS = ("requires-python", "torch", "transformers", "kernel", "wheels")
_WHEEL_KEYS = ("name", "size", "sha256", "tags")
_ANY_LINUX = re.compile(r"-(linux|manylinux(\d+|_\d+_\d+))_")


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedWheel:
    """One wheel: file name, size in bytes, sha256 in hexadecimal, tags.

    `path`: where the file is, relative to the folder of the lock, `root`, or absolute; "" if an index has it.
    """

    name: str
    size: int
    sha256: str
    tags: tuple[str, ...]
    path: str = ""
    root: Path = field(default=Path(), compare=False)

    @property
    def file(self) -> Path:
        """Return the path of a wheel that no index has."""
        return self.root / self.path

    def fits(self, python: str, platform: str) -> bool:
        """Tell whether CPython `python` (as "3.12") on a `platform` (as "x86_64") with Linux installs this wheel."""
        major, minor = (int(part) for part in python.split("."))
        interpreter, platforms = f"cp{major}{minor}", [f"linux_{platform}"]
        supported = {
            *cpython_tags((major, minor), [interpreter], platforms),
            *compatible_tags((major, minor), interpreter, platforms),
        }
        # Which glibc a wheel asks for is its machine's affair, so every Linux is one here.
        return any(parse_tag(_ANY_LINUX.sub("-linux_", tag)) & supported for tag in self.tags)


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """One upstream release: its wheels, and what its own metadata pins.

    `index`: the URL of the package index that has it, "" for the one that uv and pip are configured for, or if its
    wheels are files.
    """

    version: str
    requires_python: str
    torch: str
    transformers: str
    kernel: Requirement
    wheels: tuple[LockedWheel, ...]
    index: str = ""

    @property
    def place(self) -> str:
        """Return where its wheels come from, in words."""
        if any(wheel.path for wheel in self.wheels):
            return "files"
        return self.index or "the package index"

    @property
    def kernel_version(self) -> str:
        """Return the version of the kernel distribution that this release pins."""
        return next(iter(self.kernel.specifier)).version

    def select(self, python: str, platform: str) -> LockedWheel:
        """Return the wheel for CPython `python` on `platform`, of several builds the latest, as pip and uv do.

        Raises LockError, naming the wheels that there are, if none of them fits.
        """
        fitting = [wheel for wheel in self.wheels if wheel.fits(python, platform)]
        if fitting and SpecifierSet(self.requires_python).contains(python + ".99"):
            return max(fitting, key=lambda wheel: parse_wheel_filename(wheel.name)[2])
        raise LockError(
            f"sglang {self.version} has no wheel for CPython {python} on {platform}.",
            hint=f"It requires Python {self.requires_python} and has {', '.join(wheel.name for wheel in self.wheels)}.",
        )


Lock = Mapping[str, Release]


def load_lock(path: Path, root: Path | None = None) -> Lock:
    """Read and check a lock.

    Parameters: `root`, the folder that paths of wheels are relative to, by default the lock's own.
    Returns the releases by version, oldest first.
    Raises LockError with every fault and its line; an unknown key is a fault too.
    """
    text = read_text(path, LockError, REWRITE)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LockError(f"{path}: {error}.", hint=REWRITE) from None
    return _LockReader(path, text, root or path.parent).read(data)


class _LockReader:
    """Turns parsed TOML into releases, and collects every fault with its line."""

    def __init__(self, path: Path, text: str, root: Path) -> None:
        self.path, self.root = path, root
        self.lines = text.splitlines()
        self.faults: list[str] = []

    def read(self, data: dict[str, Any]) -> Lock:
        self._keys(data, ("lock-version", "release"), "top level", 1)
        if data.get("lock-version") != SCHEMA:
            self._fault("lock-version", f"lock-version must be {SCHEMA}, not {data.get('lock-version')!r}")
        tables = data.get("release")
        if not isinstance(tables, dict) or not tables:
            self._fault("[release", "there must be at least one table [release.VERSION]")
            tables = {}
        releases = [self._release(version, table) for version, table in tables.items()]
        if self.faults:
            raise LockError(*self.faults, hint=REWRITE)
        return {release.version: release for release in _sorted(release for release in releases if release)}

    def _release(self, version: str, table: object) -> Release | None:
        start = self._line(f'[release."{version}"]', 1)
        where = f"release {version}"
        before = len(self.faults)
        if not isinstance(table, dict):
            self._fault_at(start, f"{where} must be a table")
            return None
        try:
            Version(version)
        except InvalidVersion:
            self._fault_at(start, f"{version!r} is not a version")
        self._keys(table, _RELEASE_KEYS, where, start, optional=["index"])
        for name in ("index", *_RELEASE_KEYS[:-1]):
            if name in table and not isinstance(table[name], str):
                self._fault_at(self._line(name, start), f"{where}: {name} must be a string")
        entries = table.get("wheels", [])
        if not isinstance(entries, list) or not entries:
            self._fault_at(self._line("wheels", start), f"{where}: wheels must be a list that is not empty")
            return None
        wheels = [self._wheel(entry, index, version, start) for index, entry in enumerate(entries)]
        if len(self.faults) > before:
            return None
        index, at = table.get("index", ""), self._line("index", start)
        if "index" in table and (fault := fault_of_index(index)):
            self._fault_at(at, f"{where}: index {fault}")
        if len({bool(wheel.path) for wheel in wheels if wheel} | ({False} if index else set())) > 1:
            self._fault_at(
                start, f"{where}: all its wheels must have a path, or none of them and then it may have an index"
            )
        try:
            SpecifierSet(table["requires-python"])
            kernel = Requirement(table["kernel"])
            Version(next(iter(kernel.specifier)).version)
        except (InvalidSpecifier, InvalidRequirement, InvalidVersion, StopIteration) as error:
            self._fault_at(start, f"{where}: requires-python or kernel cannot be read: {error}")
            return None
        return Release(
            version=version,
            requires_python=table["requires-python"],
            torch=table["torch"],
            transformers=table["transformers"],
            kernel=kernel,
            wheels=tuple(wheel for wheel in wheels if wheel),
            index=index,
        )

    def _wheel(self, entry: object, index: int, version: str, start: int) -> LockedWheel | None:
        where = f"release {version}, wheel {index + 1}"
        if not isinstance(entry, dict):
            self._fault_at(start, f"{where} must be a table")
            return None
        line = self._line(str(entry.get("name", "wheels")), start)
        before = len(self.faults)
        self._keys(entry, _WHEEL_KEYS, where, line, optional=["path"])
        name, size, sha256, tags = (entry.get(key) for key in _WHEEL_KEYS)
        path = entry.get("path", name)
        if not isinstance(path, str) or (name is not None and path.rpartition("/")[2] != name):
            self._fault_at(line, f"{where}: path must end in the name of the wheel, which {path!r} does not")
        if name is not None and (not isinstance(name, str) or not _is_wheel_of(name, version)):
            self._fault_at(line, f"{where}: {name!r} is not the file name of a wheel of sglang {version}")
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size <= 0):
            self._fault_at(line, f"{where}: size must be a number of bytes, not {size!r}")
        if sha256 is not None and not (isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256)):
            self._fault_at(line, f"{where}: sha256 must be 64 lower-case hexadecimal digits, not {sha256!r}")
        if len(self.faults) == before and tags != tags_of(str(name)):
            self._fault_at(line, f"{where}: tags {tags!r} are not those in its name, {tags_of(str(name))!r}")
        if len(self.faults) > before:
            return None
        return LockedWheel(
            name=str(name),
            size=int(size),  # type: ignore[arg-type]
            sha256=str(sha256),
            tags=tuple(tags),  # type: ignore[arg-type]
            path=entry.get("path", ""),
            root=self.root,
        )

    def _keys(
        self, table: dict[str, Any], expected: Iterable[str], where: str, start: int, optional: Iterable[str] = ()
    ) -> None:
        for key in sorted(table.keys() - {*expected, *optional}):
            self._fault_at(self._line(key, start), f"{where}: unknown key {key!r}")
        for key in expected:
            if key not in table:
                self._fault_at(start, f"{where}: {key} is missing")

    def _line(self, text: str, start: int) -> int:
        return next((n for n, line in enumerate(self.lines[start - 1 :], start) if text in line), start)

    def _fault(self, text: str, message: str) -> None:
        self._fault_at(self._line(text, 1), message)

    def _fault_at(self, line: int, message: str) -> None:
        self.faults.append(f"{self.path}:{line}: {message}.")


def dump_lock(lock: Lock) -> str:
    """Return the text of a lock, oldest release first; the same releases always give the same text."""
    document = tomlkit.document()
    document.add(tomlkit.comment(_HEAD.removeprefix("# ")))
    document.add("lock-version", tomlkit.item(SCHEMA))
    tables = tomlkit.table(is_super_table=True)
    for release in _sorted(lock.values()):
        table = tomlkit.table()
        if release.index:
            table.add("index", release.index)
        table.add("requires-python", release.requires_python)
        table.add("torch", release.torch)
        table.add("transformers", release.transformers)
        table.add("kernel", str(release.kernel))
        wheels = tomlkit.array().multiline(True)
        for wheel in release.wheels:
            entry = tomlkit.inline_table()
            entry.update({"name": wheel.name, "size": wheel.size, "sha256": wheel.sha256, "tags": list(wheel.tags)})
            if wheel.path:
                entry.add("path", wheel.path)
            wheels.append(entry)
        table.add("wheels", wheels)
        table.add(tomlkit.nl())
        tables.add(release.version, table)
    document.add("release", tables)
    return tomlkit.dumps(document).rstrip("\n") + "\n"


def get_release(lock: Lock, version: str, path: Path) -> Release:
    """Return the release `version` of the lock at `path`.

    Raises LockError, naming those that are locked, if it is not.
    """
    if version not in lock:
        raise LockError(
            f"{path} holds no release {version!r}.",
            hint=f"It holds {', '.join(lock)}. `nox -s lock -- VERSION` adds one.",
        )
    return lock[version]


def tags_of(name: str) -> list[str]:
    """Return the tags in a wheel's file name, sorted."""
    return sorted(str(tag) for tag in parse_wheel_filename(name)[3])


def wanted(name: str) -> bool:
    """Tell whether the lock keeps a published wheel: one for any of our Pythons on any of our platforms."""
    wheel = LockedWheel(name=name, size=1, sha256="", tags=tuple(tags_of(name)))
    return any(wheel.fits(python, platform) for python in PYTHONS for platform in PLATFORMS)


def _is_wheel_of(name: str, version: str) -> bool:
    try:
        project, found, _, _ = parse_wheel_filename(name)
    except InvalidWheelFilename:
        return False
    return project == "sglang" and str(found) == version and "/" not in name


def _sorted(releases: Iterable[Release]) -> list[Release]:
    return sorted(releases, key=lambda release: Version(release.version))
