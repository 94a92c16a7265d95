"""Small diffs at random: whatever is written as a hook has its effect, and lint lets it pass."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from overlay_tools import console
from overlay_tools.downstream.diff import make_diff
from overlay_tools.errors import OverlayError
from overlay_tools.patches.apply import apply_series
from overlay_tools.patches.lint import lint
from overlay_tools.patches.model import Hook
from overlay_tools.patches.patch_file import load_patch

from bench.port.changes import HEADER
from bench.port.small_diffs import Change

WORDS = ("right", "wrong", "lint refuses it", "refused with an error", "uncaught")


def test_every_small_diff_can_be_a_hook(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    seed, count = pytestconfig.getoption("--seed"), pytestconfig.getoption("--diffs")
    draw = random.Random(seed)
    counts, amiss = Counter[str](), []
    with console.step(f"Make {count} small diffs hooks"):
        while counts.total() < count:
            change = Change()
            change.add(draw, "sglang/small.txt")
            if not change.touched:
                continue
            word = judge(tmp_path / "1.0.patch", change)
            counts[word] += 1
            if word != "right":
                amiss.append((word, change))
    console.table(
        f"{count} small diffs at random, seed {seed}   (promised: all right)",
        [(word, f"{counts[word]:>5}") for word in WORDS],
    )
    assert amiss == []


def judge(path: Path, change: Change) -> str:
    """Write the hook that makes a change, and say what becomes of it."""
    try:
        diff = make_diff(change.before, change.after, change.renamed)
        path.write_bytes((HEADER.format("1.0") + diff).encode("utf-8", "surrogateescape"))
        patch = load_patch(path, "small")
        if apply_series([patch], change.before.get, "sglang 1.0") != change.touched:
            return "wrong"
        faults = lint([Hook(name="small", due=patch.applies, variants=(patch,))], ["1.0"])
    except OverlayError:
        return "refused with an error"
    except Exception:  # what a user would see as a traceback
        return "uncaught"
    return "lint refuses it" if faults else "right"
