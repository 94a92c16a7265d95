"""Upstream's own changes, from one release to the next, as hooks on the older one: the newer one has them already.

Whatever `port` finds of one, to apply it to the newer release would be to apply it a second time.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from overlay_tools.archive.mode import is_executable, with_mode
from overlay_tools.downstream.diff import make_diff
from overlay_tools.patches.apply import find_hunk
from overlay_tools.patches.model import join_lines, sides, split_lines
from overlay_tools.upstream.source_tree import SourceTree
from unidiff import PatchSet

from bench.port.scratch_checkout import Ended, ScratchCheckout

HEADER = "Subject: s\nWhy: w\nApplies: =={}\nForwarded: no: made up\nRemove-When: never\n\n"


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
        text = join_lines([*lines[:place], *made, *lines[place + len(was) :]])
        changed = with_mode(text, executable=is_executable(before))
        diff = make_diff({name: before}, {name: changed})  # which fits once without the others
        found[f"change-{len(found):04}"] = HEADER.format(old.version) + diff
    return found


def carry_changes(checkout: ScratchCheckout, hooks: Mapping[str, str], old: str, new: str) -> Carried:
    """Port hooks from a release to the next; where one is a dead end, note it and port the others."""
    carried, hooks = Carried(), dict(hooks)
    while True:
        checkout.set_series(hooks, old)
        ended = checkout.run("port", new, "--take", "change-*")
        if checkout.is_porting:
            break
        stuck = _dead_end(ended)
        carried.dead_ends.append(f"{old} to {new}: {ended.error}{hooks.pop(stuck)}")
    assert {hook for hook, _ in ended.outcomes} == hooks.keys(), ended.error
    for hook, outcome in ended.outcomes:
        carried.outcomes[outcome] += 1
        if outcome in ("exact", "offset"):
            carried.applied.append(f"{old} to {new}: {outcome}: {hooks[hook]}")
    assert not checkout.run("port", "--abort").error
    return carried


def _dead_end(ended: Ended) -> str:
    """Return the hook that an error names."""
    named = re.search(r"\bchange-\d+", ended.error)
    assert named, f"port has settled everything, or does not say which hook it fails at: {ended.output}{ended.error}"
    return named[0]
