"""The fewest lines that turn one text into another: what `make_diff` writes, and what lint holds a hunk to."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Change(NamedTuple):
    """The lines `start` up to `end` of a text, counted from 0, that become those `new_start` up to `new_end`."""

    start: int
    end: int
    new_start: int
    new_end: int


def find_changes(old: Sequence[str], new: Sequence[str]) -> list[Change]:
    """Return what turns one text into another, in order: no other diff removes and adds fewer lines in all.

    Lines that could as well be taken further up or down are taken where they begin with the least indented line.
    """
    matches = [(-1, -1), *_common_lines(old, new), (len(old), len(new))]
    changes: list[Change] = []
    for (i1, j1), (i2, j2) in itertools.pairwise(matches):
        if i2 - i1 > 1 or j2 - j1 > 1:
            changes.append(Change(i1 + 1, i2, j1 + 1, j2))
    return list(_slide(old, new, changes))


def count_changes(old: Sequence[str], new: Sequence[str]) -> int:
    """Return how few lines, removed and added, turn one text into another."""
    return len(old) + len(new) - 2 * len(_common_lines(old, new))


def _common_lines(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """Return a longest common subsequence: of each of its lines where it stands in both texts."""
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    inner = _longest(old[head : len(old) - tail], new[head : len(new) - tail])
    return [
        *((n, n) for n in range(head)),
        *((head + i, head + j) for i, j in inner),
        *((len(old) - n, len(new) - n) for n in range(tail, 0, -1)),
    ]


def _longest(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    # Row by row of the usual table, a row as one number: its bit i is 0 where the table's value grows at column i.
    # https://doi.org/10.1016/j.ipl.2004.06.006 (Hyyrö, "Bit-parallel LCS-length computation revisited", 2004)
    masks: dict[str, int] = defaultdict(int)
    for i, line in enumerate(old):
        masks[line] |= 1 << i
    rows = [full := (1 << len(old)) - 1]
    for line in new:
        row = rows[-1]
        found = row & masks.get(line, 0)
        rows.append(((row + found) | (row - found)) & full)
    pairs = []
    i, j = len(old), len(new)
    while i and j:
        if rows[j] >> (i - 1) & 1:
            i -= 1
        elif not rows[j - 1] >> (i - 1) & 1:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


def _slide(old: Sequence[str], new: Sequence[str], changes: Sequence[Change]) -> Iterator[Change]:
    """Yield the changes, each that only removes or only adds moved, between its neighbours, to where it reads best."""
    first_start = 0  # so that a line that stays lies between a change and the one before
    for n, change in enumerate(changes):
        next_start = changes[n + 1].start if n + 1 < len(changes) else len(old)
        start, end, new_start, new_end = change
        if start == end or new_start == new_end:
            text, first, last = (new, new_start, new_end) if start == end else (old, start, end)
            up = down = 0
            while start - up > first_start and text[first - up - 1] == text[last - up - 1]:
                up += 1
            while end + down < next_start and text[first + down] == text[last + down]:
                down += 1
            step = min(range(down, -up - 1, -1), key=lambda step: _awkwardness(text[first + step : last + step]))
            change = Change(start + step, end + step, new_start + step, new_end + step)
        first_start = change.end + 1
        yield change


def _awkwardness(lines: Sequence[str]) -> tuple[int, bool]:
    """Rank where a block of lines may begin: with a line as far left as can be, and better with that than a blank."""
    full = [line for line in lines if line.strip()]
    indented = len(full[0]) - len(full[0].lstrip()) if full else 0
    return indented, bool(full) and not lines[0].strip()
