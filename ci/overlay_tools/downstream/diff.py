"""The diff that a hook is written as: the fewest lines, each hunk with the context that makes it fit once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from unidiff import PatchSet

from overlay_tools.archive.mode import is_executable
from overlay_tools.patches.apply import find_hunk
from overlay_tools.patches.code_spans import scope_of
from overlay_tools.patches.line_diff import Change, find_changes
from overlay_tools.patches.model import (
    CONTEXT,
    EXECUTABLE,
    ORDINARY,
    blob_id,
    lines_with_ends,
    sides,
    split_lines,
)

_NONE = "0" * 40  # git's id of a file that is not there


def make_diff(
    before: Mapping[str, bytes | None],
    after: Mapping[str, bytes | None],
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return the diff between files by path: the same for the same content, and the one that lint asks for.

    Only files that differ are in it, sorted by path. A hunk has three lines of context, or as many more as it takes for
    it to fit the file at one place only.
    Parameters: `before` and `after`, None or nothing for a file that is not there; `renamed`, by the path of each file
    that is only there afterwards, the one that it had before.
    """
    target = {old: new for new, old in renamed.items()}
    changed = []
    for name in sorted(before):
        old, new = before[name], after.get(target.get(name, name))
        if old is not None and (old != new or name in target):
            changed.append(_file_diff(name, target.get(name, name), old, new))
    return "".join(changed)


@lru_cache(maxsize=1024)  # a hook's diff is asked for by several steps of an import or an export
def _file_diff(name: str, target: str, before: bytes, after: bytes | None) -> str:
    head = f"diff --git a/{name} b/{target}\n"
    if after is None:
        return f"{head}deleted file mode {_mode(before)}\nindex {blob_id(before)}..{_NONE}\n"
    if is_executable(before) != is_executable(after):
        head += f"old mode {_mode(before)}\nnew mode {_mode(after)}\n"
    same = bytes(before) == bytes(after)
    if target != name:
        index = f"index {blob_id(before)}..{blob_id(before)}\n" if same else ""
        head += f"similarity index {_similarity(before, after)}%\nrename from {name}\nrename to {target}\n{index}"
    return head if same else f"{head}--- a/{name}\n+++ b/{target}\n{_hunks(before, after)}"


def _mode(content: bytes) -> str:
    return EXECUTABLE if is_executable(content) else ORDINARY


def _similarity(before: bytes, after: bytes) -> int:
    """Return how much of the larger of two contents stands in both, in percent; 100 only if they are the same."""
    if bytes(before) == bytes(after):
        return 100
    old, new = (lines_with_ends(split_lines(content)) for content in (before, after))
    lost = sum(len(line) for change in find_changes(old, new) for line in old[change.start : change.end])
    sizes = [sum(map(len, lines)) for lines in (old, new)]
    return min(99, (sizes[0] - lost) * 100 // max(sizes))


def _hunks(before: bytes, after: bytes) -> str:
    """Return the hunks that make a file's content of another, which differs."""
    old, new = (lines_with_ends(split_lines(content)) for content in (before, after))
    changes = find_changes(old, new)
    context = [CONTEXT] * len(changes)
    while True:
        groups = _group(changes, context)
        hunks = [_format_hunk(old, new, changes[first:end], context[first], after) for first, end in groups]
        ambiguous = _ambiguous_hunks(before, "".join(["--- a/file\n+++ b/file\n", *hunks]))
        if not ambiguous:
            return "".join(hunks)
        for first, end in (groups[n] for n in ambiguous):
            context[first:end] = [context[first] + 1] * (end - first)


def _group(changes: Sequence[Change], context: list[int]) -> list[tuple[int, int]]:
    """Return which changes share a hunk, as ranges: those whose lines of context meet.

    Those of one hunk have as much context as the one that needs most.
    """
    groups: list[tuple[int, int]] = []
    for n, change in enumerate(changes):
        first, _ = groups[-1] if groups else (n, n)
        if groups and change.start - changes[n - 1].end <= context[n - 1] + context[n]:
            context[first : n + 1] = [max(context[first : n + 1])] * (n + 1 - first)
            groups[-1] = first, n + 1
        else:
            groups.append((n, n + 1))
    return groups


def _format_hunk(old: Sequence[str], new: Sequence[str], changes: Sequence[Change], context: int, after: bytes) -> str:
    """Return a hunk, headed by the function or class that it begins in."""
    above = min(context, changes[0].start)
    start, new_start = changes[0].start - above, changes[0].new_start - above
    end = min(len(old), changes[-1].end + context)
    new_end = changes[-1].new_end + end - changes[-1].end
    lines = []
    at = start
    for change in changes:
        lines += [f" {line}" for line in old[at : change.start]]
        lines += [f"-{line}" for line in old[change.start : change.end]]
        lines += [f"+{line}" for line in new[change.new_start : change.new_end]]
        at = change.end
    lines += [f" {line}" for line in old[at:end]]
    ended = (line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
    head = f"@@ -{_range(start, end)} +{_range(new_start, new_end)} @@ {scope_of(after, changes[0].new_start + 1)}"
    return head.rstrip() + "\n" + "".join(ended)


def _range(start: int, end: int) -> str:
    size = end - start
    return f"{start + (size > 0)}" if size == 1 else f"{start + (size > 0)},{size}"


def _ambiguous_hunks(before: bytes, diff: str) -> list[int]:
    """Return which hunks of a file's diff would fit, with those before them applied, at more than one place."""
    (file,) = PatchSet.from_string(diff)
    lines, ambiguous = split_lines(before), []
    for n, hunk in enumerate(file):
        places = find_hunk(lines, hunk)
        old, new = sides(hunk)
        at = hunk.target_start - (hunk.target_length > 0)
        assert at in places
        ambiguous += [n] * (len(places) > 1)
        lines[at : at + len(old)] = new
    return ambiguous
