"""What a release requires, changed: `Requires-Dist` of METADATA as [[tool.sglang-overlay.dependencies]] asks for it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from overlay_tools.errors import BuildError
from overlay_tools.settings import DependencyRule, Project
from overlay_tools.upstream.lockfile import Release
from overlay_tools.upstream.requirements import KERNELS

_EXTRA = re.compile(r'extra == "([^"]*)"|"([^"]*)" == extra')
_HINT = "Mend [[tool.sglang-overlay.dependencies]], or limit it with `releases` to the releases that it is for."

Key = tuple[str, frozenset[str]]  # a distribution, and the extras of sglang's with which alone it is required
Change = tuple[str | None, str | None]  # a requirement before and after, None where there is none


@dataclass(frozen=True, kw_only=True, slots=True)
class Differences:
    """What makes of one METADATA's requirements those of another: `override` and `exclude`, as the settings have them.

    `left_out`: what they cannot express, a sentence each.
    """

    override: Sequence[str]
    exclude: Sequence[str]
    left_out: Sequence[str]

    @property
    def differ(self) -> bool:
        """Tell whether there is any."""
        return bool(self.override or self.exclude or self.left_out)


def rules_for(project: Project, version: str) -> list[DependencyRule]:
    """Return the tables that change what a release requires."""
    return [rule for rule in project.dependencies if rule.releases.contains(version, prereleases=True)]


def change_requirements(project: Project, release: Release, metadata: bytes) -> tuple[bytes, list[Change]]:
    """Return a release's METADATA with its requirements changed, and each change; all other bytes stay.

    What is excluded goes first; so a requirement that one table names in both is replaced whole. Else an override
    keeps those extras and that marker of upstream's which it does not state itself.
    Raises BuildError with the line of each exclusion and override that cannot be.
    """
    rules = rules_for(project, release.version)
    if not rules:
        return metadata, []
    with_own_kernel(project, release)
    changed = _Requirements(metadata, f"sglang {release.version}")
    changed.faults += _named_twice(rules, release.version)
    for rule in rules:
        for requirement in rule.exclude:
            changed.exclude(requirement, rule.where)
    for rule in rules:
        for key, wanted in _by_key(rule.override).items():
            changed.override(key, wanted, rule.where)
    if changed.faults:
        raise BuildError(*changed.faults, hint=_HINT)
    return changed.metadata, changed.changes


def with_own_kernel(project: Project, release: Release) -> Release:
    """Return a release with the kernel that the project's overrides pin in place of upstream's, if they do.

    The CPU kernel wheel has the pinned version. Where upstream's kernel is excluded, it keeps upstream's version.
    Raises BuildError if an override does not pin one version.
    """
    for rule in rules_for(project, release.version):
        for wanted in rule.override:
            if canonicalize_name(wanted.name) in KERNELS and not extras_of(wanted):
                pins = [pin for pin in wanted.specifier if pin.operator == "==" and not pin.version.endswith("*")]
                if wanted.url or len(pins) != 1 or len(wanted.specifier) != 1:
                    raise BuildError(
                        f"{rule.where}: {wanted} must name one version of the kernel, as {release.kernel} does.",
                        hint="The CPU kernel wheel that is built beside sglang's has this version.",
                    )
                kernel = Requirement(f"{wanted.name}{wanted.specifier}")
                return dataclasses.replace(release, kernel=kernel)
    return release


def compare_requirements(base: bytes, fork: bytes) -> Differences:
    """Return what overrides and exclusions make of the requirements of a release's METADATA those of a fork's.

    Raises BuildError if a requirement cannot be read.
    """
    before, after = _Requirements(base, "the release"), _Requirements(fork, "the fork")
    for requirement in after.all:
        if canonicalize_name(requirement.name) == canonicalize_name(after.name):
            requirement.name = before.name  # it requires its own extras
    old, new = _by_key(before.all), _by_key(after.all)
    override: list[str] = []
    exclude: list[str] = []
    left_out: list[str] = []
    for key in {**old, **new}:
        was, wanted = old.get(key, []), new.get(key, [])
        if set(map(str, was)) == set(map(str, wanted)):
            continue
        if wanted and not key[1] <= before.extras:
            left_out += [f"{each}: the release has no such extra." for each in wanted]
            continue
        shortest = _shortest(was[0], wanted[0]) if len(was) == len(wanted) == 1 else None
        if was and shortest is None:
            exclude.append(_exclusion(was[0]))
        override += [shortest] if shortest is not None else [str(each) for each in wanted]
    return Differences(override=override, exclude=exclude, left_out=left_out)


def read_requirements(metadata: bytes, where: str) -> list[str]:
    """Return the requirements of a METADATA; `where` is what an error calls it.

    Raises BuildError if one cannot be read.
    """
    return [str(requirement) for requirement in _Requirements(metadata, where).all]


@dataclass(kw_only=True, slots=True)
class _Field:
    """A field of METADATA with the lines that it is folded into; `requirement`, if it is a `Requires-Dist`."""

    text: str
    requirement: Requirement | None = None


class _Requirements:
    """The requirements of a METADATA, while they are changed; `where` says in errors whose they are."""

    def __init__(self, metadata: bytes, where: str) -> None:
        head, self._separator, self._body = metadata.partition(b"\n\n")
        self.where = where
        try:
            lines = head.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BuildError(f"METADATA of {where}: {error}.", hint="Use another wheel.") from None
        self._fields = [self._read(text) for text in re.split(r"\n(?![ \t])", lines)]
        self.name = next(iter(self._values("Name")), "")
        self.extras = frozenset(canonicalize_name(name) for name in self._values("Provides-Extra"))
        self.changes: list[Change] = []
        self.faults: list[str] = []

    @property
    def metadata(self) -> bytes:
        """Return METADATA as it has become."""
        return "\n".join(field.text for field in self._fields).encode("utf-8") + self._separator + self._body

    @property
    def all(self) -> list[Requirement]:
        """Return the requirements."""
        return [field.requirement for field in self._fields if field.requirement is not None]

    def exclude(self, excluded: Requirement, where: str) -> None:
        """Take a requirement out."""
        gone = self._find(_key_of(excluded))
        if not gone:
            self.faults.append(f"{where}: {self.where} does not require {excluded}, which is to be excluded.")
        for field in gone:
            self._fields.remove(field)
            self.changes.append((str(field.requirement), None))

    def override(self, key: Key, wanted: Sequence[Requirement], where: str) -> None:
        """Put a requirement in the place of those with the same key, or add them if there are none."""
        replaced = self._find(key)
        if not replaced and not key[1] <= self.extras:
            self.faults.append(f"{where}: {self.where} has no such extra: {wanted[0]}.")
        elif not replaced:
            for requirement in wanted:
                self._add(requirement)
        elif len(wanted) > 1:
            self.faults.append(f"{where}: {wanted[0]} and {wanted[1]}: only where {wanted[0].name} is excluded too.")
        else:
            for field in replaced:
                self._replace(field, wanted[0])

    def _replace(self, field: _Field, wanted: Requirement) -> None:
        old = field.requirement
        assert old is not None
        new = _merge(wanted, old)
        if new == old:
            return
        if new in self.all:  # another one of this name has become the same
            self._fields.remove(field)
            self.changes.append((str(old), None))
        else:
            field.text, field.requirement = f"Requires-Dist: {new}", new
            self.changes.append((str(old), str(new)))

    def _add(self, new: Requirement) -> None:
        """Add a requirement after those of the same extra, or at the end."""
        places = [
            place
            for place, field in enumerate(self._fields, 1)
            if field.requirement is not None and extras_of(field.requirement) == extras_of(new)
        ]
        added = _Field(text=f"Requires-Dist: {new}", requirement=new)
        self._fields.insert(places[-1] if places else len(self._fields), added)
        self.changes.append((None, str(new)))

    def _find(self, key: Key) -> list[_Field]:
        return [field for field in self._fields if field.requirement is not None and _key_of(field.requirement) == key]

    def _values(self, name: str) -> list[str]:
        pairs = (field.text.partition(":") for field in self._fields)
        return [value.strip() for found, _, value in pairs if found.lower() == name.lower()]

    def _read(self, text: str) -> _Field:
        name, _, value = text.partition(":")
        if name.lower() != "requires-dist":
            return _Field(text=text)
        try:
            return _Field(text=text, requirement=Requirement(" ".join(value.split())))
        except InvalidRequirement as error:
            raise BuildError(f"METADATA of {self.where}: {error}.", hint="Use another wheel.") from None


def _merge(wanted: Requirement, old: Requirement) -> Requirement:
    """Return an override with what it does not state itself: the extras and the marker that upstream has."""
    new = Requirement(str(wanted))
    new.extras = wanted.extras or old.extras
    if new.marker is None or _EXTRA.fullmatch(str(new.marker)):
        new.marker = old.marker
    return new


def _shortest(old: Requirement, new: Requirement) -> str | None:
    """Return the shortest override that makes one requirement of another one, or None if none does."""
    bare = Requirement(str(new))
    bare.extras, bare.marker = set(), None
    only = "".join(f' ; extra == "{extra}"' for extra in list(extras_of(new))[:1])
    overrides = (Requirement(f"{bare}{only}"), new)
    fitting = (each for each in overrides if _key_of(each) == _key_of(new) and _merge(each, old) == new)
    return next(map(str, fitting), None)


def _exclusion(requirement: Requirement) -> str:
    extras = " or ".join(f'extra == "{extra}"' for extra in sorted(extras_of(requirement)))
    return f"{requirement.name}; {extras}" if extras else requirement.name


def _by_key(requirements: Iterable[Requirement]) -> Mapping[Key, list[Requirement]]:
    found: dict[Key, list[Requirement]] = {}
    for requirement in requirements:
        found.setdefault(_key_of(requirement), []).append(requirement)
    return found


def _key_of(requirement: Requirement) -> Key:
    return canonicalize_name(requirement.name), extras_of(requirement)


def extras_of(requirement: Requirement) -> frozenset[str]:
    """Return the extras of sglang's that a requirement's marker names; none, if it is required without one."""
    named = _EXTRA.findall(str(requirement.marker or ""))
    return frozenset(canonicalize_name(one or other) for one, other in named)


def _named_twice(rules: Sequence[DependencyRule], version: str) -> list[str]:
    """Return a sentence for each requirement that two tables change in one release."""
    seen: dict[Key, DependencyRule] = {}
    faults = []
    for rule in rules:
        for key in _by_key([*rule.override, *rule.exclude]):
            if key in seen:
                faults.append(f"{rule.where}: {key[0]} is changed by {seen[key].where} too, for sglang {version}.")
            seen[key] = rule
    return faults
