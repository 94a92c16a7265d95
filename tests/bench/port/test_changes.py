"""Upstream's own changes as hooks: none is applied a second time, and none stops `port` for good."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from overlay_tools import console
from overlay_tools.settings import cache_dir
from overlay_tools.upstream.lockfile import load_lock
from overlay_tools.upstream.source_tree import open_source_tree

from bench.port.changes import Carried, carry_changes, choose_changes
from bench.port.scratch_checkout import ROOT, ScratchCheckout


def test_no_change_of_upstream_is_applied_twice(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    count, seed = pytestconfig.getoption("--changes"), pytestconfig.getoption("--seed")
    lock = load_lock(ROOT / "upstream.lock")
    pairs = list(itertools.pairwise(lock))
    every, checkout = Carried(), ScratchCheckout(tmp_path)
    for number, (old, new) in enumerate(pairs):
        share = count // len(pairs) + (number < count % len(pairs))
        with console.step(f"Port {share} of the changes from {old} to {new}"):
            with open_source_tree(lock[old], cache_dir()) as a, open_source_tree(lock[new], cache_dir()) as b:
                hooks = choose_changes(a, b, share, seed)
            carried = carry_changes(checkout, hooks, old, new)
        every.outcomes.update(carried.outcomes)
        every.applied.extend(carried.applied)
        every.dead_ends.extend(carried.dead_ends)
    rows = [(outcome, f"{n:>5}") for outcome, n in every.outcomes.most_common()]
    bounds = [
        ("applied a second time", f"{len(every.applied):>5}   (promised: none)"),
        ("dead ends", f"{len(every.dead_ends):>5}   (promised: none)"),
    ]
    console.table(f"{every.outcomes.total()} of upstream's own changes as hooks, seed {seed}", [*rows, *bounds])
    assert (every.applied, every.dead_ends) == ([], [])
    assert every.outcomes.total() > 0.9 * count
