"""What is wrong with a series that can be read: the releases that it covers, the names of its files, its style."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from unidiff import Hunk, PatchedFile

from overlay_tools.errors import PatchError
from overlay_tools.patches.line_diff import count_changes
from overlay_tools.patches.model import CONTEXT, TO_BE_FILLED, Hook, Patch, lines_with_ends, locate, sides
from overlay_tools.patches.patch_file import HINT
from overlay_tools.patches.series import load_series

_ENDS_IN_SPACE = re.compile(r"\+(?!\+\+ ).*[ \t]\r?$").match
_HOLDS_TAB = re.compile(r"\+(?!\+\+ ).*\t").match


def load_checked_series(folder: Path, versions: Sequence[str]) -> tuple[Hook, ...]:
    """Read a series as `load_series` does.

    Raises PatchError also for what `lint` finds.
    """
    hooks = load_series(folder)
    if faults := lint(hooks, versions):
        raise PatchError(*faults, hint=HINT)
    return hooks


def lint(hooks: Sequence[Hook], versions: Sequence[str]) -> list[str]:
    """Return every fault of a series, for the locked releases `versions`."""
    faults: list[str] = []
    for hook in hooks:
        faults += _lint_coverage(hook, versions)
        for patch in hook.variants:
            faults += _lint_name(patch, versions)
            for file in patch.files:
                faults += _lint_index(patch, file)
                for hunk in file:
                    faults += _lint_size(patch, hunk)
                    faults += _lint_gaps(patch, hunk)
    return faults


def find_warnings(hooks: Sequence[Hook]) -> list[str]:
    """Return what is amiss with a series and yet no fault: headers still to be filled, and a matter of taste.

    What an added line says is its author's; only that a hunk is written as it should be is for `lint` to judge.
    """
    found = []
    for patch in (patch for hook in hooks for patch in hook.variants):
        if fields := [name for name, value in patch.header.items() if TO_BE_FILLED in value]:
            found.append(f"{patch.path}: {', '.join(fields)}: to be filled in.")
        for what, matches in (("end in white space", _ENDS_IN_SPACE), ("hold a tab", _HOLDS_TAB)):
            lines = [str(n) for n, line in enumerate(patch.diff.split("\n"), patch.first_line) if matches(line)]
            if lines:
                found.append(f"{patch.path}: added lines that {what}: {', '.join(lines)}.")
    return found


def _lint_coverage(hook: Hook, versions: Sequence[str]) -> Iterable[str]:
    for version in versions:
        try:
            hook.variant(version)
        except PatchError as error:
            yield from error.problems


def _lint_name(patch: Patch, versions: Sequence[str]) -> Iterable[str]:
    covered = [version for version in versions if patch.applies.contains(version, prereleases=True)]
    if not covered:
        yield f"{patch.path}: `Applies: {patch.applies}` does not hold for any locked release."
    elif patch.path.stem != covered[0]:
        yield f"{patch.path}: it first applies to {covered[0]}; name it {covered[0]}.patch."


def _lint_index(patch: Patch, file: PatchedFile) -> Iterable[str]:
    for number, line in enumerate(file.patch_info or (), patch.first_line + file.diff_line_no - 1):
        if line.startswith("index ") and len(file):
            yield f"{patch.path}:{number}: an index line changes with every release; remove it."


def _lint_size(patch: Patch, hunk: Hunk) -> Iterable[str]:
    touched = hunk.added + hunk.removed
    smallest = count_changes(*(lines_with_ends(side) for side in sides(hunk)))
    if smallest < touched:
        yield f"{locate(patch, hunk)}: the hunk touches {touched} lines where {smallest} would do."


def _lint_gaps(patch: Patch, hunk: Hunk) -> Iterable[str]:
    lines = [line for line in hunk if line.is_context or line.is_added or line.is_removed]
    changed = [index for index, line in enumerate(lines) if not line.is_context]
    if hunk.source_start <= 1:
        return  # how much context it needs does not show where the file begins
    context = max(CONTEXT, changed[0])
    if any(after - before > 2 * context + 1 for before, after in itertools.pairwise(changed)):
        yield (
            f"{locate(patch, hunk)}: the hunk joins changes that are more than {2 * context} lines apart; make it two."
        )
