"""Where things are in a checkout, and what its pyproject.toml settles."""

from __future__ import annotations

import keyword
import os
import re
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import InvalidName, canonicalize_name

from overlay_tools.errors import OverlayError
from overlay_tools.surroundings import check_place
from overlay_tools.user_files import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SETTINGS = {"default": str, "revision": int, "replaces": list, "plugin": list}
_TABLES = {"files": dict, "dependencies": list}  # they may be absent, as may these:
_PLUGIN = {"plugin-distribution": "sglang-overlay-plugin", "plugin-package": "sglang_overlay_plugin"}
_TAKEN = {*sys.stdlib_module_names, "sglang", "sgl_kernel", "sglang_kernel", "torch", "transformers"}
_FILES = "[tool.sglang-overlay.files]"
_DEPENDENCIES = "[[tool.sglang-overlay.dependencies]]"
_ONE_EXTRA = re.compile(r'extra == "[^"]*"')


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRange:
    """A line of `[tool.sglang-overlay.files]`: which releases take some files of overlay/.

    `pattern`: a path in a wheel, or a glob in which `*` stands for any text, with `/` in it too; `where`: file and
    line.
    """

    pattern: str
    releases: SpecifierSet
    where: str

    def matches(self, name: str) -> bool:
        """Tell whether it is about a file, by its path in a wheel."""
        return fnmatchcase(name, self.pattern)


@dataclass(frozen=True, kw_only=True, slots=True)
class DependencyRule:
    """A table of `[[tool.sglang-overlay.dependencies]]`: what some releases require other than upstream says.

    `override`: requirements that take the place of upstream's, or are added; `exclude`: what is no longer required, a
    name and no more, or with the extra of sglang's that requires it; `where`: file and line.
    """

    releases: SpecifierSet
    override: tuple[Requirement, ...]
    exclude: tuple[Requirement, ...]
    where: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Project:
    """A checkout and its settings.

    `default`: a release; `revision`: N of `X+overlay.N`; `replaces`: upstream files in whose place the overlay has its
    own; `plugin`: the releases on which the plugin is proven; `plugin_distribution`, `plugin_package`: what installers
    and what imports call it; `files`: which of the overlay's files do not go to every release; `dependencies`: what
    releases require other than upstream says.
    """

    root: Path
    default: str
    revision: int
    replaces: frozenset[str]
    plugin: tuple[str, ...]
    plugin_distribution: str
    plugin_package: str
    files: tuple[FileRange, ...]
    dependencies: tuple[DependencyRule, ...]

    def takes(self, version: str, name: str) -> bool:
        """Tell whether a release takes a file of overlay/, by its path in a wheel."""
        return all(row.releases.contains(version, prereleases=True) for row in self.files if row.matches(name))

    def replaced(self, version: str) -> frozenset[str]:
        """Return the files of a release in whose place the overlay has its own there."""
        return frozenset(name for name in self.replaces if self.takes(version, name))

    @property
    def settings(self) -> Path:
        """Return the path of pyproject.toml."""
        return self.root / "pyproject.toml"

    def overlay_version(self, version: str) -> str:
        """Return the version of the wheel that is built of a release; what says of its base goes on in it."""
        return f"{version}{'.' if '+' in version else '+'}overlay.{self.revision}"

    def kernel_version(self, pinned: str) -> str:
        """Return the version of the CPU kernel wheel for a pin: the pin itself, if it has a local part to be met."""
        return pinned if "+" in pinned else f"{pinned}+cpu.{self.revision}"

    @property
    def lock(self) -> Path:
        """Return the path of upstream.lock."""
        return self.root / "upstream.lock"

    @property
    def overlay(self) -> Path:
        """Return the folder of the overlay's own files."""
        return self.root / "overlay"

    @property
    def patches(self) -> Path:
        """Return the folder of the hooks."""
        return self.root / "patches"

    @property
    def results(self) -> Path:
        """Return the path of what the tests said of each release."""
        return self.root / "ci" / "results.json"

    @property
    def dist(self) -> Path:
        """Return the folder that built wheels go to."""
        return self.root / "dist"


def load_project(root: Path) -> Project:
    """Read `[tool.sglang-overlay]` of the checkout at `root`.

    Raises OverlayError if the checkout cannot be used where it lies, or if pyproject.toml is absent, malformed, or
    lacks a setting or has one of another type.
    """
    check_place(root)
    path = root / "pyproject.toml"
    try:
        text = read_text(path, hint="Run this in a checkout of sglang-overlay.")
        table = tomllib.loads(text)["tool"]["sglang-overlay"]
    except tomllib.TOMLDecodeError as error:
        raise OverlayError(f"{path}: {error}.", hint="Mend the file, or restore it from git.") from None
    except KeyError:
        raise OverlayError(f"{path} has no table [tool.sglang-overlay].", hint="Restore the table from git.") from None
    wrong = [
        f"{path}: [tool.sglang-overlay] {name} must be a {kind.__name__}, not {table.get(name)!r}."
        for name, kind in {**_SETTINGS, **_TABLES, **dict.fromkeys(_PLUGIN, str)}.items()
        if not isinstance(table.get(name, None if name in _SETTINGS else kind()), kind)
    ] + [
        f"{path}: [tool.sglang-overlay] has an unknown setting: {name!r}."
        for name in sorted(table.keys() - {*_SETTINGS, *_TABLES, *_PLUGIN})
    ]
    if not wrong and table["revision"] < 1:
        wrong = [f"{path}: [tool.sglang-overlay] revision must be 1 or more."]
    if wrong:
        raise OverlayError(*wrong, hint=f"It takes {', '.join([*_SETTINGS, *_PLUGIN, *_TABLES])}.")
    distribution, package = (table.get(name, default) for name, default in _PLUGIN.items())
    if faults := check_plugin(distribution, package):
        raise OverlayError(
            *(f"{path}: [tool.sglang-overlay] {fault}." for fault in faults),
            hint='Take a name of your own: plugin-distribution = "acme-sglang-models", plugin-package ='
            ' "acme_sglang_models".',
        )
    return Project(
        root=root,
        default=table["default"],
        revision=table["revision"],
        replaces=frozenset(table["replaces"]),
        plugin=tuple(table["plugin"]),
        plugin_distribution=distribution,
        plugin_package=package,
        files=_read_files(path, text, table.get("files", {})),
        dependencies=_read_dependencies(path, text, table.get("dependencies", [])),
    )


def check_plugin(distribution: str, package: str) -> list[str]:
    """Return why a plugin cannot have these names."""
    faults = []
    try:
        if canonicalize_name(distribution, validate=True).replace("-", "_") in _TAKEN:
            faults.append(f"plugin-distribution is {distribution!r}, which is the name of something else")
    except InvalidName:
        faults.append(f"plugin-distribution is {distribution!r}: letters and digits, and `.`, `-` or `_` between them")
    if not package.isascii() or not package.isidentifier() or keyword.iskeyword(package):
        faults.append(f"plugin-package is {package!r}, which cannot be imported: letters, digits and underscores")
    elif package in _TAKEN:
        faults.append(f"plugin-package is {package!r}, which is the name of something else")
    return faults


def _read_files(path: Path, text: str, table: dict[str, object]) -> tuple[FileRange, ...]:
    """Return which releases take which files. Raises OverlayError with the line of each range that cannot be read."""
    rows, faults = [], []
    for pattern, releases in table.items():
        where = f"{path}:{_line(text, 'files', pattern)}"
        try:
            if not isinstance(releases, str):
                raise InvalidSpecifier(f"{releases!r} is not a text")
            rows.append(FileRange(pattern=pattern, releases=SpecifierSet(releases), where=where))
        except InvalidSpecifier as error:
            faults.append(f"{where}: the releases of {pattern}: {error}.")
    if faults:
        raise OverlayError(*faults, hint=f'{_FILES} gives a file its range of releases as ">=0.5.9,<0.5.20".')
    return tuple(rows)


def _read_dependencies(path: Path, text: str, tables: list[object]) -> tuple[DependencyRule, ...]:
    """Return what releases require other than upstream says. Raises OverlayError with all that is wrong in a table."""
    rules, faults = [], []
    for number, table in enumerate(tables):
        where = f"{path}:{_line(text, 'dependencies', number=number)}"
        fields = table if isinstance(table, dict) else {}
        wrong = [f"unknown key {key!r}" for key in sorted(fields.keys() - {"releases", "override", "exclude"})]
        lists = {key: fields.get(key, []) for key in ("override", "exclude")}
        wrong += [f"{key} must be a list" for key, values in lists.items() if not isinstance(values, list)]
        if not any(lists.values()):
            wrong.append("it must have `override` or `exclude`, a list of requirements")
        read = {key: _requirements(values, wrong) for key, values in lists.items() if isinstance(values, list)}
        wrong += [
            f"exclude takes names, as 'outlines' or 'granian; extra == \"http2\"', not {str(each)!r}"
            for each in read.get("exclude", ())
            if each.specifier or each.url or each.extras or not _ONE_EXTRA.fullmatch(str(each.marker or 'extra == ""'))
        ]
        try:
            releases = SpecifierSet(str(fields.get("releases", "")))
        except InvalidSpecifier as error:
            wrong.append(f"releases: {error}")
        faults += [f"{where}: {each}." for each in wrong]
        if not wrong:
            rules.append(DependencyRule(releases=releases, **read, where=where))
    if faults:
        raise OverlayError(*faults, hint=f"{_DEPENDENCIES} takes `releases`, `override` and `exclude`.")
    return tuple(rules)


def _requirements(values: list[object], wrong: list[str]) -> tuple[Requirement, ...]:
    """Return the requirements among values, and add to `wrong` what is not one."""
    found = []
    for value in values:
        try:
            found.append(Requirement(value if isinstance(value, str) else ""))
        except InvalidRequirement as error:
            wrong.append(f"{value!r} is not a requirement: {str(error).splitlines()[0]}")
    return tuple(found)


def _line(text: str, table: str, word: str = "", *, number: int = 0) -> int:
    """Return the line where one of our tables begins or, if a word is given, the next one that holds it in quotes.

    Parameters: `number`, of the table among those of its name, from 0.
    """
    lines = text.splitlines()
    starts = [n for n, line in enumerate(lines) if f"tool.sglang-overlay.{table}]" in line]
    start = starts[number] if number < len(starts) else 0
    if not word:
        return start + 1
    quoted = (f'"{word}"', f"'{word}'")
    return next((n for n, line in enumerate(lines[start:], start + 1) if any(q in line for q in quoted)), start + 1)


def cache_dir() -> Path:
    """Return the folder outside the tree that keeps base wheels; `SGLANG_OVERLAY_CACHE` moves it.

    Raises OverlayError if this user has no folder to keep them in.
    """
    if moved := os.environ.get("SGLANG_OVERLAY_CACHE"):
        return Path(moved).absolute()
    import platformdirs  # which an engine environment, where tests read the settings, need not have

    folder = platformdirs.user_cache_path("sglang-overlay")
    if folder.is_absolute():
        return folder
    try:  # XDG_CACHE_HOME counts if it is absolute only (XDG Base Directory Specification)
        return Path.home().absolute() / ".cache" / "sglang-overlay"
    except RuntimeError:
        raise OverlayError(
            "This user has no home folder, where base wheels could be kept.",
            hint="Let SGLANG_OVERLAY_CACHE name a folder for them.",
        ) from None
