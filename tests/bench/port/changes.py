"""Upstream's own changes, from one release to the next, as hooks on the older one: the newer one has them already.

Whatever `port` finds of one, to apply it to the newer release would be to apply it a second time.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from overlay_tools.downstream.diff import make_diff
from overlay_tools.downstream.port_state import in_progress
from overlay_tools.patches.apply import find_hunk
from overlay_tools.patches.model import join_lines, sides, split_lines
from overlay_tools.upstream.source_tree import SourceTree
from unidiff import PatchSet

from bench.port.scratch_checkout import HEADER, Ended, ScratchCheckout

_SETTLED = ("exact", "offset")


@dataclass(frozen=True, kw_only=True, slots=True)
class Carried:
    """What became of changes: how many came out how; of these the hooks that were `applied`, and the dead ends.

    A dead end is a hook that stops `port` with an error and leaves nothing to go on from.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    applied: list[str] = field(default_factory=list)
    dead_ends: list[str] = field(default_factory=list)


def choose_changes(old: SourceTree, new: SourceTree, count: int, seed: int) -> dict[str, str]:
    """Choose changes of upstream's, one hunk a file; return each as the patch of a hook, by a name for it."""
    draw = random.Random(seed)
    names = [name for name in sorted({*old.names} & {*new.names}) if old.read(name) != new.read(name)]
    found: dict[str, str] = {}
    for name in draw.sample(names, len(names)):
        if len(found) == count:
            break
        before, after = old.read(name) or b"", new.read(name) or b""
        (file,) = PatchSet.from_string(make_diff({name: before}, {name: after}))
        hunk, lines = draw.choice(list(file)), split_lines(before)
        place = min(find_hunk(lines, hunk), key=lambda at: abs(at + 1 - hunk.source_start))
        was, made = sides(hunk)
        changed = join_lines([*lines[:place], *made, *lines[place + len(was) :]])
        diff = make_diff({name: before}, {name: changed})  # which fits once without the others
        found[f"change-{len(found):04}"] = HEADER.format(f"=={old.version}") + diff
    return found


def carry_changes(hooks: Mapping[str, str], old: str, new: str) -> Carried:
    """Port hooks from a release to the next; where one is a dead end, note it and port the others."""
    carried = Carried()
    hooks = dict(hooks)
    with TemporaryDirectory() as folder:
        checkout = ScratchCheckout(Path(folder) / "checkout", [old], hooks)
        while hooks:
            ended = checkout.port(new)
            if in_progress(checkout.folder / ".nox" / "porting"):
                break
            stuck = _dead_end(ended)
            carried.dead_ends.append(f"{old} to {new}: {hooks.pop(stuck).splitlines()[6]}: {ended.error}")
            checkout.set_hooks(hooks, old)
    assert {hook for hook, _ in ended.outcomes} == hooks.keys(), ended.error
    for hook, outcome in ended.outcomes:
        carried.outcomes[outcome] += 1
        if outcome in _SETTLED:
            carried.applied.append(f"{old} to {new}: {outcome}: {hooks[hook]}")
    return carried


def _dead_end(ended: Ended) -> str:
    """Return the hook that an error names."""
    named = re.search(r"\bchange-\d+", ended.error or "")
    assert named, f"port ended without an open hook: {ended.error}"
    return named[0]
