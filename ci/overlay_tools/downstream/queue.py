"""The series while it is changed: which variant of a hook each release takes, and the files that say so."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version
from unidiff import PatchSet

from overlay_tools.downstream.staging import as_if_in
from overlay_tools.errors import PatchError, UsageError
from overlay_tools.patches.model import FIELDS, Hook, Patch, target_of
from overlay_tools.patches.patch_file import load_patch
from overlay_tools.user_files import decode

_WIDTH = 120
_BYTE = re.compile("[\udc80-\udcff]")  # one that is not UTF-8, as it is decoded


@dataclass(frozen=True, kw_only=True, slots=True)
class _Variant:
    """One text of a patch, and how it words its range and is named if it has a file yet."""

    text: str
    applies: SpecifierSet | None = None
    stem: str = ""


class PatchQueue:
    """The series, to be changed: for every hook, the variant that each release takes.

    Parameters: `hooks`, as read; `versions`, the releases that are or are to be locked, oldest first.
    """

    def __init__(self, hooks: Sequence[Hook], versions: Sequence[str]) -> None:
        self.versions = list(versions)
        self._due = {hook.name: hook.due for hook in hooks}
        self._taken: dict[str, dict[str, _Variant]] = {}
        for hook in hooks:
            taken = self._taken[hook.name] = {}
            for patch in hook.variants:
                text = decode(patch.path.read_bytes(), patch.path)  # with the line ends that it has
                variant = _Variant(text=text, applies=patch.applies, stem=patch.path.stem)
                taken |= {v: variant for v in versions if patch.applies.contains(v, prereleases=True)}

    def take(self, hook: str, version: str, *, like: str) -> None:
        """Let a release take the variant that the release `like` takes."""
        self._taken[hook][version] = self._taken[hook][like]

    def add_variant(self, hook: str, versions: Sequence[str], header: Mapping[str, str], diff: str) -> None:
        """Let releases take a new variant of a hook, which may be a new hook, added to the end of the series.

        Raises PatchError if the diff has lines that are not UTF-8, with where they are in upstream's files.
        """
        if faults := [*_not_utf_8(diff)]:
            raise PatchError(
                *(f"Hook {hook}: {fault}" for fault in faults),
                hint="A patch is UTF-8. Save the file so, or put all of it into overlay/, in the place of upstream's.",
            )
        applies = specifier(sorted(versions, key=self.versions.index), self.versions)
        text = _format_header({**header, "Applies": applies})
        self._due.setdefault(hook, SpecifierSet())
        taken = self._taken.setdefault(hook, {})
        taken |= dict.fromkeys(versions, _Variant(text=f"{text}\n{diff}"))

    def drop(self, hook: str, version: str) -> None:
        """Let a release take no variant: the hook is not due there."""
        self._taken[hook].pop(version, None)

    def variant(self, hook: str, version: str, patches: Path) -> Patch:
        """Return the variant that a release takes, read and checked as if it were in `patches` already.

        Raises PatchError if it is not a patch that the series may have.
        """
        with TemporaryDirectory() as folder, as_if_in(patches, folder):
            path = Path(folder) / hook / f"{version}.patch"
            path.parent.mkdir()
            path.write_bytes(self._taken[hook][version].text.encode("utf-8", "surrogateescape"))
            patch = load_patch(path, hook)
        return dataclasses.replace(patch, path=patches / hook / path.name)

    def files(self, series: str) -> dict[str, str]:
        """Return the content of patches/ by path; what says the same as before stays as it was, to the byte.

        Parameters: `series`, the text of the file of this name until now.
        """
        content = {}
        for hook, taken in self._taken.items():
            for variant in dict.fromkeys(taken[version] for version in self.versions if version in taken):
                covered = [version for version in self.versions if taken.get(version) is variant]
                text = variant.text
                if variant.applies is None or covered != _covered(variant.applies, self.versions):
                    text = re.sub(
                        r"(?m)^Applies:.*\n(?:[ \t].*\n)*",
                        f"Applies: {specifier(covered, self.versions)}\n",
                        text,
                        count=1,
                    )
                content[f"{hook}/{covered[0]}.patch"] = text
        content["series"] = self._series(series)
        return content

    def _series(self, text: str) -> str:
        lines = text.splitlines()
        where = {words[0]: n for n, line in enumerate(lines) if (words := line.partition("#")[0].split())}
        for hook, taken in self._taken.items():
            covered = [version for version in self.versions if version in taken]
            if covered == _covered(self._due[hook], self.versions) and hook in where:
                continue
            due = f" {due_range(covered, self.versions)}".rstrip()
            if hook in where:
                comment = lines[where[hook]].partition("#")[1:]
                lines[where[hook]] = f"{hook}{due}" + ("  " + "".join(comment) if comment[0] else "")
            else:
                lines.append(f"{hook}{due}")
        return text if lines == text.splitlines() else "\n".join(lines) + "\n"


def parse_releases(text: str | None) -> SpecifierSet | None:
    """Return the releases that an option `--releases` names, `all` being every one; None where it is not given.

    Raises UsageError if that is not a range.
    """
    try:
        return None if text is None else SpecifierSet("" if text == "all" else text)
    except InvalidSpecifier:
        raise UsageError(
            f"--releases: {text!r} is not a range of releases.", hint='It is written as ">=0.5.20,<0.5.23", or all.'
        ) from None


def _format_header(header: Mapping[str, str]) -> str:
    return "".join(
        textwrap.fill(
            f"{name}: {header[name]}", _WIDTH, subsequent_indent=" ", break_long_words=False, break_on_hyphens=False
        )
        + "\n"
        for name in FIELDS
    )


def _not_utf_8(diff: str) -> Iterable[str]:
    """Yield which lines of a diff are not UTF-8, as they are counted in the files that it makes or, if gone, had."""
    if not _BYTE.search(diff):
        return
    for file in PatchSet.from_string(diff):
        for line in (line for hunk in file for line in hunk):
            if found := _BYTE.search(line.value):
                where = f"{target_of(file)}:{line.target_line_no or line.source_line_no}"
                yield f"{where}: byte 0x{ord(found[0]) - 0xDC00:02x} is not UTF-8."


def specifier(covered: Sequence[str], versions: Sequence[str]) -> str:
    """Return the range that holds for the `covered` ones among `versions`, both oldest first, and no other.

    Raises PatchError if there is no such range.
    """
    # An order knows no local versions, as 0.5.24+gabc: what holds for a version holds for those of it as well.
    first, last = (Version(covered[n]).public for n in (0, -1))
    if len(covered) == 1 or first == last == covered[0]:
        return _without_others([f"=={covered[0]}"], covered, versions)
    return _without_others([f">={first}", f"<={last}"], covered, versions)


def due_range(covered: Sequence[str], versions: Sequence[str]) -> str:
    """Return the range of a hook: as `specifier`, but open where it reaches the oldest or the newest release."""
    if not covered:
        return f"<{Version(versions[0]).public}"
    if len(covered) == 1 and "+" in covered[0]:
        return specifier(covered, versions)
    first, last = (Version(covered[n]).public for n in (0, -1))
    parts = [f">={first}"] * (covered[0] != versions[0]) + [f"<={last}"] * (covered[-1] != versions[-1])
    return _without_others(parts, covered, versions)


def _without_others(parts: Sequence[str], covered: Sequence[str], versions: Sequence[str]) -> str:
    """Return a range without those of `versions` that it would hold for and that are not covered."""
    others = [version for version in _covered(SpecifierSet(",".join(parts)), versions) if version not in covered]
    range_ = ",".join([*parts, *(f"!={version}" for version in others)])
    if _covered(SpecifierSet(range_), versions) != list(covered):
        raise PatchError(
            f"No range holds for {', '.join(covered)} and for no other locked release: what leaves out a version leaves"
            " out its local versions (VERSION+LOCAL) too.",
            hint="Let the version and its local versions take the same, or lock only one of them.",
        )
    return range_


def _covered(range_: SpecifierSet, versions: Sequence[str]) -> list[str]:
    return [version for version in versions if range_.contains(version, prereleases=True)]
