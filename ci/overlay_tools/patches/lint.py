"""patches/: the series of hooks, the header and the diff of each variant, and which variant a release takes."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Sequence

from unidiff import Hunk

from overlay_tools.errors import PatchError
from overlay_tools.patches.model import CONTEXT, MOST_CONTEXT, Hook, Patch, locate, sides


def lint(hooks: Sequence[Hook], versions: Sequence[str]) -> list[str]:
    """Return every fault of a series that has been read: of coverage of the locked `versions`, names and style."""
    faults: list[str] = []
    for hook in hooks:
        for version in versions:
            try:
                hook.variant(version)
            except PatchError as error:
                faults += error.problems
        for patch in hook.variants:
            covered = [version for version in versions if patch.applies.contains(version, prereleases=True)]
            if not covered:
                faults.append(f"{patch.path}: `Applies: {patch.applies}` does not hold for any locked release.")
            elif patch.path.stem != covered[0]:
                faults.append(f"{patch.path}: it first applies to {covered[0]}; name it {covered[0]}.patch.")
            faults += _lint_lines(patch)
            for file in patch.files:
                for hunk in file:
                    faults += _lint_hunk(patch, hunk)
    return faults


def _lint_lines(patch: Patch) -> Iterable[str]:
    for number, line in enumerate(patch.diff.splitlines(), patch.first_line):
        if re.match(r"index [0-9a-f]+\.\.", line):
            yield f"{patch.path}:{number}: an index line changes with every release; remove it."
        if line.startswith("+") and not line.startswith("+++ ") and line != line.rstrip():
            yield f"{patch.path}:{number}: an added line ends in white space."
        if line.startswith("+") and "\t" in line:
            yield f"{patch.path}:{number}: an added line holds a tab."


def _lint_hunk(patch: Patch, hunk: Hunk) -> Iterable[str]:
    before, after = sides(hunk)
    smallest = sum(1 for line in difflib.ndiff(before, after) if line[0] in "+-")
    where = f"{locate(patch, hunk)}:"
    if smallest < hunk.added + hunk.removed:
        yield f"{where} the hunk touches {hunk.added + hunk.removed} lines where {smallest} would do."
    kinds = [line.is_context for line in hunk]
    changed = [index for index, context in enumerate(kinds) if not context]
    context = max(CONTEXT, changed[0], len(kinds) - 1 - changed[-1]) if changed else 0
    if context > MOST_CONTEXT:
        yield f"{where} the hunk has more than {MOST_CONTEXT} lines of context at an end."
    if any(after - before > 2 * context + 1 for before, after in itertools.pairwise(changed)):
        yield f"{where} the hunk joins changes that are more than {2 * context} lines apart; make it two."
