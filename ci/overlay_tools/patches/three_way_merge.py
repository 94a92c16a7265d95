"""A function merged into another release, by git; what git leaves open is settled where it is an insertion."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from overlay_tools.errors import ToolError
from overlay_tools.patches.edited_file import Part, Region, hook_lines, shown_lines, upstream_lines
from overlay_tools.patches.model import join_lines, split_lines
from overlay_tools.subprocesses import git

_MARKER = 100  # longer than any row of signs in upstream's files
_REGION = "\x1a{}"  # the line that stands for a region while git merges: no text file has this character
_FAILED = 128  # git's status from here on is not a count of conflicts


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """A merged function: its parts; how many lines stand before what has changed, None if nothing has.

    `clean`: nothing is in conflict; what the merge has changed is a region each.
    """

    parts: Sequence[Part]
    unchanged: int | None
    clean: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Conflict:
    """Lines of which git cannot say what they become; among `ours` there may be regions from before."""

    ours: Sequence[Part]
    base: Sequence[str]
    theirs: Sequence[str]


def merge(ours: Sequence[Part], base: Sequence[str], theirs: Sequence[str]) -> Merged:
    """Merge what was done to a function from `base` to `theirs` into what it is elsewhere, however far indented.

    A region that `ours` has already stays one, or becomes a part of a new one.
    """
    was, now = _indentation(base), _indentation(shown_lines(ours))
    merged = _merge_file(ours, _reindent(base, was, now), _reindent(theirs, was, now))
    pieces = [settled for piece in _take_apart(merged) for settled in _settle_insertion(piece)]
    parts = list(_mark(ours, pieces))
    clean = not any(isinstance(piece, _Conflict) for piece in pieces)
    first = next((n for n, part in enumerate(parts) if isinstance(part, Region) and part not in ours), None)
    unchanged = None if first is None else len(shown_lines(parts[:first]))
    return Merged(parts=parts, unchanged=unchanged, clean=clean)


def _mark(ours: Sequence[Part], pieces: Sequence[Part | _Conflict]) -> Iterator[Part]:
    """Yield the merged parts: as a region each conflict, and between them what is not among `ours`."""
    sides = [piece.ours if isinstance(piece, _Conflict) else [piece] for piece in pieces]
    matcher = difflib.SequenceMatcher(None, ours, [part for side in sides for part in side], autojunk=False)
    codes, clean, start, at = matcher.get_opcodes(), list[Part](), 0, 0
    for piece, side in zip(pieces, sides, strict=True):
        if isinstance(piece, _Conflict):
            first, last = _align(codes, at), _align(codes, at + len(side))
            yield from _mark_changes(ours[start:first], clean)
            yield _mark_conflict(piece, ours[first:last])
            clean, start = [], last
        else:
            clean.append(piece)
        at += len(side)
    yield from _mark_changes(ours[start:], clean)


def _align(codes: Sequence[tuple[str, int, int, int, int]], at: int) -> int:
    """Return what index in the first of two sequences corresponds to one in the second."""
    return next((i2 if at == j2 else min(i1 + at - j1, i2) for _, i1, i2, j1, j2 in codes if at <= j2), 0)


def _mark_conflict(conflict: _Conflict, ours: Sequence[Part]) -> Region:
    # Where hunks before this one are open in it, they are among `theirs`, and in `base` they would pass for upstream's.
    alone = not any(isinstance(part, Region) for part in ours)
    base = conflict.base if alone else ()
    return Region(ours=upstream_lines(ours), base=base, theirs=conflict.theirs, conflict=True)


def _mark_changes(ours: Sequence[Part], merged: Sequence[Part]) -> Iterator[Part]:
    """Yield the merged parts, as a region what is not among `ours`."""
    for kind, i1, i2, j1, j2 in difflib.SequenceMatcher(None, ours, merged, autojunk=False).get_opcodes():
        if kind == "equal":
            yield from merged[j1:j2]
        else:
            yield Region(ours=upstream_lines(ours[i1:i2]), theirs=hook_lines(merged[j1:j2]))


def _settle_insertion(piece: Part | _Conflict) -> Sequence[Part | _Conflict]:
    """Settle a conflict where the hunk only inserts lines, and what stood before or after them stands still."""
    if not isinstance(piece, _Conflict):
        return [piece]
    base, theirs, ours = list(piece.base), list(piece.theirs), list(piece.ours)
    size = len(theirs) - len(base)
    same = 0
    while same < min(len(base), len(theirs)) and base[same] == theirs[same]:
        same += 1
    head, inserted, rest = base[:same], theirs[same : same + size], base[same:]
    if size > 0 and theirs[same + size :] == rest:
        if ours[:same] == head:
            return [*head, *inserted, *ours[same:]]
        if ours[len(ours) - len(rest) :] == rest:
            return [*ours[: len(ours) - len(rest)], *inserted, *rest]
    return [piece]


def _take_apart(merged: Iterable[Part]) -> Iterator[Part | _Conflict]:
    """Yield what `git merge-file --diff3` writes, each of its conflicts as one piece."""
    sides: dict[str, list[Part]] = {}
    side = ""
    for part in merged:
        sign = part[:1] if isinstance(part, str) and part[:_MARKER] == part[:1] * _MARKER else ""
        if sign == "<":
            sides, side = {"<": [], "|": [], "=": []}, "<"
        elif side and sign in ("|", "="):
            side = sign
        elif side and sign == ">":
            yield _Conflict(ours=sides["<"], base=shown_lines(sides["|"]), theirs=shown_lines(sides["="]))
            side = ""
        elif side:
            sides[side].append(part)
        else:
            yield part


def _merge_file(ours: Sequence[Part], base: Sequence[str], theirs: Sequence[str]) -> Iterator[Part]:
    """Yield what `git merge-file --diff3` writes; each region of `ours` is one line to git, and comes out whole."""
    regions = {_REGION.format(n): part for n, part in enumerate(ours) if isinstance(part, Region)}
    lines = [part if isinstance(part, str) else _REGION.format(n) for n, part in enumerate(ours)]
    with TemporaryDirectory() as folder:
        for name, text in (("ours", lines), ("base", base), ("theirs", theirs)):
            (Path(folder) / name).write_bytes(join_lines([*text, ""]))
        words = ["merge-file", "--diff3", f"--marker-size={_MARKER}", "ours", "base", "theirs"]
        done = git(words, cwd=Path(folder))
        if not 0 <= done.returncode < _FAILED:
            raise ToolError(f"git merge-file failed: {done.stderr.strip()}")
        # Not from what git prints: reading that as text would make its line ends alike.
        merged = split_lines((Path(folder) / "ours").read_bytes().removesuffix(b"\n"))
    return (regions.get(line, line) for line in merged)


def _indentation(lines: Sequence[str]) -> str:
    first = next(iter(lines), "")
    return first[: len(first) - len(first.lstrip(" \t"))]


def _reindent(lines: Sequence[str], was: str, now: str) -> list[str]:
    """Indent lines by `now` instead of `was`; those further left, as a text's can be, stay as they are."""
    return [now + line.removeprefix(was) if line.strip() and line.startswith(was) else line for line in lines]
