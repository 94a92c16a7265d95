"""ci/contract.toml: the problems that are waived, and the base mentions of which nothing but a person can tell."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from overlay_tools.errors import ContractError
from overlay_tools.settings import Project
from overlay_tools.user_files import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# What the overlay needs of a release, by its kind, and what to do where the release lacks it.
KINDS = {
    "import": "import it from where this release has it, or let other releases alone take the file",
    "override": "take what upstream's method takes in every release, and pass on the rest with *args and **kwargs",
    "call": "pass what this release takes too; where releases differ, ask the signature or the version",
    "attribute": "use what this release has; where releases differ, ask with hasattr or the version",
    "row": "correct the row, or let other releases alone take its file",
    "collision": "give yours another name, or let only the releases before this one take the file",
}
_HINT = "ci/README.md says how a waiver and a mention are written."
# The keys of an entry with their defaults; None for a key that it must have.
_WAIVER: dict[str, Any] = {"kind": None, "what": None, "problem": None, "reason": None, "releases": ""}
_MENTION: dict[str, Any] = {
    "file": None,
    "scope": None,
    "what": None,
    "reason": None,
    "releases": "",
    "times": 1,
    "base": "",
}
_PATTERNS = {"kind", "what", "problem", "file", "scope"}


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Entry:
    """One line of ci/contract.toml: a problem or a base mention, and why nothing needs to be done.

    `patterns`: for each field the patterns of which it must match one; `times`: how many mentions of one release it
    stands for; `base`: the architecture without a row of which a mention is not expected.
    """

    line: int
    patterns: Mapping[str, tuple[str, ...]]
    releases: SpecifierSet
    reason: str
    times: int = 1
    base: str = ""

    @property
    def what(self) -> str:
        """Return what it is about, as a message shows it."""
        return " or ".join(self.patterns["what"])

    def matches(self, release: str, **texts: str) -> bool:
        """Say whether a finding or a mention of a release, with these fields, is meant."""
        return self.releases.contains(release, prereleases=True) and all(
            any(_text_matches(pattern, texts[name]) for pattern in patterns) for name, patterns in self.patterns.items()
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Contract:
    """What ci/contract.toml says."""

    path: Path
    waivers: tuple[Entry, ...] = ()
    mentions: tuple[Entry, ...] = ()


def contract_path(project: Project) -> Path:
    """Return the path of the project's ci/contract.toml."""
    return project.root / "ci" / "contract.toml"


def load_contract(path: Path) -> Contract:
    """Read ci/contract.toml; if there is none, nothing is waived.

    Raises ContractError with every fault and its line.
    """
    if not path.exists() and not path.is_symlink():
        return Contract(path=path)
    try:
        return _parse(path, read_text(path, ContractError))
    except tomllib.TOMLDecodeError as error:
        raise ContractError(f"{path}: {error}.", hint=_HINT) from None


@lru_cache(maxsize=1)
def _parse(path: Path, text: str) -> Contract:
    data = tomllib.loads(text)
    faults = [
        f"{path}:{_line(text, key)}: unknown key {key!r}." for key in sorted(data.keys() - {"waivers", "mentions"})
    ]
    entries: dict[str, list[Entry]] = {"waivers": [], "mentions": []}
    for name, keys in (("waivers", _WAIVER), ("mentions", _MENTION)):
        tables, first = data.get(name, []), _line(text, name)
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            faults.append(f"{path}:{first}: {name} must be a list of tables.")
            continue
        # Each table in braces is on a line of its own.
        starts = [n for n, line in enumerate(text.splitlines(), 1) if n >= first and line.lstrip().startswith("{")]
        for index, table in enumerate(tables):
            line = starts[index] if index < len(starts) else first
            try:
                entries[name].append(_parse_entry(table, keys, line))
            except ContractError as error:
                faults += [f"{path}:{line}: {problem}." for problem in error.problems]
    if faults:
        raise ContractError(*faults, hint=_HINT)
    return Contract(path=path, waivers=tuple(entries["waivers"]), mentions=tuple(entries["mentions"]))


def _line(text: str, key: str) -> int:
    pattern = re.compile(rf"\s*\[*\"?{re.escape(key)}\b")
    return next((n for n, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)


def _parse_entry(table: dict[str, Any], keys: dict[str, Any], line: int) -> Entry:
    """Return one entry. Raises ContractError with all that is wrong with it."""
    wrong = [f"unknown key {key!r}" for key in sorted(table.keys() - keys)]
    wrong += [f"{key} is missing" for key, default in keys.items() if default is None and key not in table]
    for key in (key for key in table if key in keys):
        values = table[key] if key in _PATTERNS and isinstance(table[key], list) else [table[key]]
        is_valid = _is_count if key == "times" else _is_text
        if not values or not all(map(is_valid, values)):
            wrong.append(f"{key} cannot be {table[key]!r}")
    fields = keys | table
    if not wrong and fields.get("kind", "import") not in KINDS:
        wrong.append(f"kind must be one of {', '.join(KINDS)}, not {fields['kind']!r}")
    try:
        releases = SpecifierSet(str(fields["releases"]))
    except InvalidSpecifier as error:
        wrong.append(f"releases: {error}")
    if wrong:
        raise ContractError(*wrong)
    patterns = {
        key: fields[key] if isinstance(fields[key], list) else [fields[key]] for key in keys if key in _PATTERNS
    }
    return Entry(
        line=line,
        patterns={key: tuple(values) for key, values in patterns.items()},
        releases=releases,
        reason=fields["reason"],
        times=fields.get("times", 1),
        base=fields.get("base", ""),
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _text_matches(pattern: str, text: str) -> bool:
    """Say whether a text matches a pattern, in which `*` stands for any text."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None
