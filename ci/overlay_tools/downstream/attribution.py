"""Which hook a change in the worktree of a port belongs to: the one that last touched these lines, or is open there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from overlay_tools.downstream.weave import Attribute, WovenLine
from overlay_tools.patches.edited_file import MARKER
from overlay_tools.patches.line_diff import Change


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribution:
    """What is known of a file when its changes are attributed.

    `open`: the numbers of all hooks that are open; `here`: of those among them that change this file; `lines`: gets the
    numbers of the lines, in the file as it has become, whose change belongs to no hook for certain.
    """

    open: Collection[int]
    here: Collection[int]
    edited: set[int]
    lines: list[int] = field(default_factory=list)

    def __call__(self, old: Sequence[WovenLine], change: Change, added: Sequence[str]) -> tuple[Sequence[int], int]:
        """Return the hooks of the lines that a change removes, one a line, and the hook of those that it adds."""
        owners = owners_of(old)
        removed = owners[change.start : change.end]
        lines = old[change.start : change.end]
        marks = [bool(line.born and MARKER.match(line.text)) for line in lines]
        content = [number for number, mark in zip(removed, marks, strict=True) if not mark]
        whose = {number for number in content or removed if number} or {number for number in removed if number}
        beside = {*owners[max(change.start - 1, 0) : change.start], *owners[change.end : change.end + 1]} - {0}
        number = self._decide(whose, beside) if added or 0 in removed else removed[0]
        if number is None:
            self.lines.append(change.new_start + 1)
            number = 0
        died = [
            line.born if mark else number if added else owner or number
            for line, mark, owner in zip(lines, marks, removed, strict=True)
        ]
        self.edited.update(died, [number] if added else [])
        return died, number

    def _decide(self, whose: Collection[int], beside: Collection[int]) -> int | None:
        """Return the hook of a change that removes lines of some hooks and stands beside those of others."""
        opened = {number for number in whose if number in self.open}
        if whose and len(opened) < 2:
            return next(iter(opened or [max(whose)]))
        for candidates in (opened, {n for n in beside if n in self.open}, self.here, self.open, beside):
            if candidates:
                return next(iter(candidates)) if len(candidates) == 1 else None
        return None


def belonging_to(number: int) -> Attribute:
    """Return what attributes all changes to one hook."""
    return lambda old, change, added: ([number] * (change.end - change.start), number)


def owners_of(lines: Sequence[WovenLine]) -> list[int]:
    """Return whose each line is: the hook's that brought it, and from marker to marker of a hook that one's, or 0."""
    owners = [line.born for line in lines]
    start = None
    for n, line in enumerate(lines):
        sign = line.text[0] if line.born and MARKER.match(line.text) else ""
        if sign == "<":
            start = n
        elif sign == ">" and start is not None and lines[start].born == line.born:
            owners[start : n + 1] = [max(owner, line.born) for owner in owners[start : n + 1]]
            start = None
    return owners
