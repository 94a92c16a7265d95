"""A function merged into another release, by git; what git leaves open is settled where it is an insertion."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from overlay_tools.errors import ToolError
from overlay_tools.subprocesses import git

_MARKER = 100  # longer than any row of signs in upstream's files
_FAILED = 128  # git's status from here on is no count of conflicts


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """Lines that a person is to look at: the new release's and those proposed; `base`, what both have changed."""

    ours: Sequence[str]
    theirs: Sequence[str]
    base: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """A merged function: its lines, and what is in conflict."""

    merged: Sequence[list[str] | Region]

    @property
    def clean(self) -> bool:
        """Tell whether nothing is in conflict."""
        return all(isinstance(part, list) for part in self.merged)

    def parts(self, ours: Sequence[str]) -> Iterator[list[str] | Region]:
        """Yield the lines that stay and the regions to look at, in order; `ours` are the lines that are replaced."""
        if not self.clean:
            yield from self.merged
            return
        merged = [line for part in self.merged if isinstance(part, list) for line in part]
        for kind, i1, i2, j1, j2 in difflib.SequenceMatcher(None, ours, merged, autojunk=False).get_opcodes():
            if kind == "equal":
                yield merged[j1:j2]
            else:
                yield Region(ours=ours[i1:i2], theirs=merged[j1:j2])


def merge(ours: Sequence[str], base: Sequence[str], theirs: Sequence[str]) -> Merged:
    """Merge what was done to a function from `base` to `theirs` into what it is elsewhere, however far indented."""
    was, now = _indent(base), _indent(ours)
    parts = _regions(_merge_file(ours, _moved(base, was, now), _moved(theirs, was, now)))
    return Merged(merged=[part if isinstance(part, list) else _side_by_side(part) or part for part in parts])


def _side_by_side(region: Region) -> list[str] | None:
    """Return a region merged where the hunk only inserts lines, and what stood before or after them stands still."""
    same = 0
    while same < min(len(region.base), len(region.theirs)) and region.base[same] == region.theirs[same]:
        same += 1
    head, rest = list(region.base[:same]), list(region.base[same:])
    size = len(region.theirs) - len(region.base)
    if size <= 0 or list(region.theirs[same + size :]) != rest:
        return None
    inserted, ours = list(region.theirs[same : same + size]), list(region.ours)
    if ours[:same] == head:
        return [*head, *inserted, *ours[same:]]
    if ours[len(ours) - len(rest) :] == rest:
        return [*ours[: len(ours) - len(rest)], *inserted, *rest]
    return None


def _regions(lines: Sequence[str]) -> Iterator[list[str] | Region]:
    """Take apart what `git merge-file --diff3` writes."""
    plain: list[str] = []
    sides_: dict[str, list[str]] = {}
    current = ""
    for line in lines:
        sign = line[:1] if line[:_MARKER] == line[:1] * _MARKER else ""
        if sign == "<":
            yield plain
            plain, sides_, current = [], {"<": [], "|": [], "=": []}, "<"
        elif current and sign in ("|", "="):
            current = sign
        elif current and sign == ">":
            yield Region(ours=sides_["<"], base=sides_["|"], theirs=sides_["="])
            current = ""
        elif current:
            sides_[current].append(line)
        else:
            plain.append(line)
    yield plain


def _merge_file(ours: Sequence[str], base: Sequence[str], theirs: Sequence[str]) -> list[str]:
    with TemporaryDirectory() as folder:
        for name, lines in (("ours", ours), ("base", base), ("theirs", theirs)):
            (Path(folder) / name).write_bytes(("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
        words = ["merge-file", "--diff3", f"--marker-size={_MARKER}", "ours", "base", "theirs"]
        done = git(words, cwd=Path(folder))
        if not 0 <= done.returncode < _FAILED:
            raise ToolError(f"git merge-file failed: {done.stderr.strip()}")
        # Not from what git prints: as text, that has its line ends made alike.
        merged = (Path(folder) / "ours").read_bytes().decode("utf-8", "surrogateescape")
    return merged.removesuffix("\n").split("\n")


def _indent(lines: Sequence[str]) -> str:
    return lines[0][: len(lines[0]) - len(lines[0].lstrip(" \t"))]


def _moved(lines: Sequence[str], was: str, now: str) -> list[str]:
    """Indent lines by `now` instead of `was`; those further left, as a text's can be, stay as they are."""
    return [now + line.removeprefix(was) if line.strip() and line.startswith(was) else line for line in lines]
