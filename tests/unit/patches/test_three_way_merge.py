from __future__ import annotations

import random

import pytest
from overlay_tools.patches.edited_file import Part, Region, hook_lines, upstream_lines
from overlay_tools.patches.three_way_merge import merge

HEAD, TAIL = ["def f():", "    head()"], ["    tail()"]
BLOCK = [f"    step({n})" for n in range(5)]
OPEN = Region(
    ours=["    theirs()"], theirs=["    ours()"], base=["    once()"], conflict=True
)  # a hunk before this one


def test_a_region_from_before_stays_where_the_function_changes_elsewhere() -> None:
    ours: list[Part] = [*HEAD, OPEN, *BLOCK, *TAIL]
    merged = merge(ours, [*HEAD, "    ours()", *BLOCK, *TAIL], [*HEAD, "    ours()", *BLOCK])
    assert merged.clean
    assert merged.parts[:-1] == [*HEAD, OPEN, *BLOCK]
    assert merged.unchanged == 8


def test_a_region_from_before_is_not_lost_where_lines_move_across_it() -> None:
    ours: list[Part] = [*HEAD, OPEN, "    a()", "    b()", "    c()", "    d()", *BLOCK, *TAIL]
    base = [*HEAD, "    ours()", "    a()", "    b()", "    c()", "    d()", *BLOCK, *TAIL]
    theirs = [
        "def f():",
        *BLOCK,
        "    head()",
        "    ours()",
        "    a()",
        "    b()",
        "    new()",
        "    c()",
        "    d()",
        *TAIL,
    ]
    merged = merge(ours, base, theirs)
    assert merged.clean
    assert upstream_lines(merged.parts) == upstream_lines(ours)
    assert hook_lines(merged.parts) == theirs


def test_a_merge_that_changes_nothing_has_no_region() -> None:
    merged = merge([*HEAD, *TAIL], [*HEAD, *BLOCK, *TAIL], [*HEAD, *TAIL])
    assert (merged.parts, merged.unchanged, merged.clean) == ([*HEAD, *TAIL], None, True)


def test_what_merges_beside_a_conflict_is_to_be_reviewed_too() -> None:
    base = [*HEAD, "    a()", *BLOCK, "    b()", *TAIL]
    ours: list[Part] = [*HEAD, "    a(1)", *BLOCK, "    b()", *TAIL]
    merged = merge(ours, base, ["def f():", "    ours()", "    head()", "    a(2)", *BLOCK, "    b(2)", *TAIL])
    assert not merged.clean
    regions = [part for part in merged.parts if isinstance(part, Region)]
    assert [(region.conflict, region.ours, region.theirs) for region in regions] == [
        (False, [], ["    ours()"]),
        (True, ["    a(1)"], ["    a(2)"]),
        (False, ["    b()"], ["    b(2)"]),
    ]
    assert merged.unchanged == 1
    assert upstream_lines(merged.parts) == ours


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_merged_upstreams_side_is_upstreams(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(20):
        base = [f"    {draw.choice('abcd')}()" for _ in range(draw.randint(2, 20))]
        ours, theirs = ([*base], [*base])
        for side, name in ((ours, "upstream"), (theirs, "hook")):
            for n in range(draw.randint(1, 3)):
                at = draw.randrange(len(side) + 1)
                side[at : at + draw.randint(0, 2)] = [f"    {name}({n})"] * draw.randint(0, 2)
        merged = merge(ours, base, theirs)
        assert upstream_lines(merged.parts) == ours
        # All that the hook adds is shown in a region.
        plain = [part for part in merged.parts if isinstance(part, str)]
        assert all(line in ours for line in plain)
