from __future__ import annotations

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
