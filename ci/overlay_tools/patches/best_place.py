"""Where lines belong that no longer stand in a file as they were: where most of them still do."""

from __future__ import annotations

from collections.abc import Sequence

from overlay_tools.patches.line_diff import count_changes

_FEW = 3  # of this many lines one must stand there, and two at least, for a place to be better than the stated one
_Line = tuple[int, str]


def find_best_place(lines: Sequence[str], block: Sequence[str], stated: int) -> range:
    """Return which lines of a file are most like a block: none, at the line `stated`, where nothing is like it.

    White space at either end of a line does not count, blank lines do not, and of places that are as good the nearest
    to the stated one is taken. Lines are counted from 0.
    """
    wanted = [line.strip() for line in block if line.strip()]
    full = [(n, line.strip()) for n, line in enumerate(lines) if line.strip()]
    size, known = len(wanted), set(wanted)
    hits = [text in known for _, text in full]
    best, place = 0, 0
    windows = range(max(1, len(full) - size + 1) if full and wanted else 0)
    for at in sorted(windows, key=lambda at: -sum(hits[at : at + size])):  # no window has more in common than hits
        if sum(hits[at : at + size]) < best:
            break
        common = _in_common(wanted, full[at : at + size])
        if common > best or (common == best and abs(full[at][0] - stated) < abs(full[place][0] - stated)):
            best, place = common, at
    if best < min(size, max(2, size // _FEW)) or not best:
        at = min(max(stated, 0), len(lines))
        return range(at, at)
    first, end = _widen(wanted, full, place)
    return range(full[first][0], full[end - 1][0] + 1)


def _widen(wanted: Sequence[str], full: Sequence[_Line], place: int) -> tuple[int, int]:
    """Return the shortest run of lines around a place that has as much of the block as can be found there."""
    size = len(wanted)
    first, end = max(0, place - size), min(len(full), place + 2 * size)
    most = _in_common(wanted, full[first:end])
    low, high = first, end  # the end is the least with which nothing is lost, then the first the greatest
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _in_common(wanted, full[first:middle]) == most else (middle + 1, high)
    end = low
    low, high = first, end
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _in_common(wanted, full[middle:end]) == most else (low, middle - 1)
    return low, end


def _in_common(wanted: Sequence[str], some: Sequence[_Line]) -> int:
    texts = [text for _, text in some]
    return (len(wanted) + len(texts) - count_changes(wanted, texts)) // 2
