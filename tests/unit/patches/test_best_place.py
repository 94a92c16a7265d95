from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from overlay_tools.patches.best_place import find_best_place

BLOCK = [f"line {n}" for n in range(9)]


def place_of(text: str, block: str, stated: int = 0) -> range:
    """Find a place with a letter for each line, "." for a blank one."""
    return find_best_place([" " if letter == "." else letter for letter in text], list(block.replace(".", " ")), stated)


@pytest.mark.parametrize(
    ("text", "block", "found"),
    [
        ("qqabcqq", "abc", range(2, 5)),
        ("abc", "abc", range(3)),
        ("qa.b..cq", "a.bc", range(1, 7)),  # blank lines do not count
        ("qabxyzcdq", "abcd", range(1, 8)),  # lines of the release's stand within
        ("qabxyzcdq", "abc", range(1, 3)),  # and not too many of them
        ("qabq", "abc", range(1, 3)),
        ("qacq", "abc", range(1, 3)),
        ("a", "a", range(1)),
        ("abqab", "xab", range(2)),
    ],
)
def test_a_block_is_found_where_most_of_its_lines_stand(text: str, block: str, found: range) -> None:
    assert place_of(text, block) == found


def test_white_space_at_the_ends_of_lines_does_not_count() -> None:
    lines = ["class A:", "\tdef a(self):  ", "\t\treturn 1", "", "last"]
    assert find_best_place(lines, ["def a(self):", "    return 1", ""], 4) == range(1, 3)


@pytest.mark.parametrize(("stated", "found"), [(0, 0), (2, 0), (3, 5), (9, 5)])
def test_of_places_that_are_as_good_the_nearest_is_taken(stated: int, found: int) -> None:
    assert place_of("abqqqab", "ab", stated) == range(found, found + 2)


@pytest.mark.parametrize(
    ("text", "block"), [("qqqqq", "ab"), ("qqaqq", "ab"), ("aqqbq", "xyza"), ("q", "a"), ("qqqqq", ""), (".....", "a")]
)
def test_where_nothing_is_like_it_the_stated_line_is_the_place(text: str, block: str) -> None:
    for stated in range(len(text)):
        assert place_of(text, block, stated) == range(stated, stated)
    assert place_of(text, block, 99) == range(len(text), len(text))
    assert place_of(text, block, -1) == range(0)


def test_a_file_without_lines_has_its_beginning_alone() -> None:
    assert place_of("", "ab", 3) == range(0)


@pytest.mark.parametrize(("standing", "found"), [(2, range(1, 1)), (3, range(3, 6)), (9, range(3, 12))])
def test_a_third_of_a_long_block_must_stand_there(standing: int, found: range) -> None:
    lines = ["x = 1", "y = 2", "z = 3", *BLOCK[:standing], "last = 1"]
    assert find_best_place(lines, BLOCK, 1) == found


def in_common(some: Sequence[str], others: Sequence[str]) -> int:
    """Return the length of a longest common subsequence of few lines, by trying all."""
    if not some or not others:
        return 0
    if some[0] == others[0]:
        return 1 + in_common(some[1:], others[1:])
    return max(in_common(some[1:], others), in_common(some, others[1:]))


def test_no_place_has_more_of_the_block_and_none_is_shorter() -> None:
    draw = random.Random(5)
    for _ in range(300):
        lines, block = draw.choices("abcdef", k=draw.randrange(1, 14)), draw.choices("abcdef", k=draw.randrange(2, 6))
        found = find_best_place(lines, block, draw.randrange(14))
        most = max(in_common(lines[at : at + len(block)], block) for at in range(len(lines)))
        if most < 2:
            assert len(found) == 0
            continue
        common = in_common(lines[found.start : found.stop], block)
        assert common >= most
        assert in_common(lines[found.start + 1 : found.stop], block) < common
        assert in_common(lines[found.start : found.stop - 1], block) < common
