from __future__ import annotations

import difflib
import itertools
import random

import pytest
from overlay_tools.patches.line_diff import count_changes, find_changes


def apply(old: list[str], new: list[str]) -> list[str]:
    made, at = list[str](), 0
    for start, end, new_start, new_end in find_changes(old, new):
        made += old[at:start] + new[new_start:new_end]
        at = end
    return made + old[at:]


def longest(old: list[str], new: list[str]) -> int:
    """Return the length of a longest common subsequence, by the usual table."""
    row = [0] * (len(new) + 1)
    for line in old:
        above = row[:]
        for n, other in enumerate(new):
            row[n + 1] = above[n] + 1 if line == other else max(above[n + 1], row[n])
    return row[-1]


def test_no_diff_is_smaller() -> None:
    draw = random.Random(3)
    for _ in range(1000):
        old, new = (draw.choices(["a", "b", "    c", ""], k=draw.randrange(14)) for _ in range(2))
        changes = find_changes(old, new)
        assert apply(old, new) == new
        fewest = len(old) + len(new) - 2 * longest(old, new)
        assert sum(end - start + new_end - new_start for start, end, new_start, new_end in changes) == fewest
        assert count_changes(old, new) == fewest
        assert all(a.end < b.start for a, b in itertools.pairwise(changes))


def test_a_block_that_is_wrapped_and_indented_is_a_small_diff() -> None:
    old = [line for n in range(8) for line in (f"step({n})", "", f"log({n})", ")")]
    new = ["if ours:", *(f"    {line}".rstrip() for line in old[:20]), *old[20:]]
    fewest = len(old) + len(new) - 2 * (len(old) - 20 + 5)
    assert count_changes(old, new) <= fewest
    assert count_changes(old, new) <= sum(line[0] in "+-" for line in difflib.ndiff(old, new))


A, OURS, B = "def a\n    x\n", "def ours\n    x\n", "def b\n    x\n"


@pytest.mark.parametrize(
    ("head", "added", "tail"),
    [
        (f"{A}\n\n", f"{OURS}\n\n", B),
        (A, f"\n\n{OURS}", ""),
        ("class A\n    def a\n        x\n", "\n    def b\n        x\n", ""),
        ("x\nx\n", "x\n", ""),
        ("", "x\n\n", "x\n"),
    ],
)
def test_a_function_is_added_and_removed_whole(head: str, added: str, tail: str) -> None:
    without, whole = (head + tail).splitlines(), (head + added + tail).splitlines()
    start, end = head.count("\n"), (head + added).count("\n")
    assert find_changes(without, whole) == [(start, start, start, end)]
    assert find_changes(whole, without) == [(start, end, start, start)]
