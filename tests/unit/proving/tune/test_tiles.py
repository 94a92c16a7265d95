"""Which tiles are tried, and where the entries of a file count."""

from __future__ import annotations

from dataclasses import replace

import pytest
from overlay_tools.proving.tune.tiles import Point, Tile, candidates, points, regrouped

from unit.proving.tune.made_up import LARGE, QWEN, SHARED_MEMORY, SMALL, tile

BATCHES = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096]


def nearest(grid: list[Point], tokens: int) -> Point:
    """Return the entry that upstream takes, as it looks for it."""
    entries = {point.tokens: point for point in grid}
    return entries[min(entries.keys(), key=lambda key: abs(key - tokens))]


@pytest.mark.parametrize(
    "defaults",
    [
        [(1, SMALL)],
        [(1, SMALL), (65, LARGE)],
        [(1, SMALL), (129, LARGE)],
        [(1, SMALL), (2, LARGE), (3, SMALL), (700, LARGE), (5001, SMALL)],
        [(start, {"BLOCK_SIZE_M": start}) for start in (1, 2, 4, 7, 13, 21, 29, 41, 57, 81, 113, 193, 385, 769, 3073)],
    ],
)
@pytest.mark.parametrize("batches", [BATCHES, [1], [8, 8, 3], [96]])
def test_upstream_has_one_default_wherever_an_entry_counts(
    batches: list[int], defaults: list[tuple[int, Tile]]
) -> None:
    """And the entry counts where upstream takes it: so one that is not slower than its default nowhere is."""
    grid = points(batches, defaults, 8192)
    assert {point.tokens for point in grid} >= set(batches)
    for tokens in range(1, 8193):
        point = nearest(grid, tokens)
        assert point.low <= tokens <= point.high
        assert point.default == [of for start, of in defaults if start <= tokens][-1]


def test_entries_are_added_only_where_the_default_changes_within_one() -> None:
    assert [p.tokens for p in points(BATCHES, [(1, SMALL), (65, LARGE)], 8192)] == sorted([*BATCHES, 65])
    same = [(1, SMALL), (81, LARGE)]  # 80 lies between 64 and 96
    assert [p.tokens for p in points(BATCHES, same, 8192)] == BATCHES


def test_the_last_entry_counts_for_the_largest_pass() -> None:
    assert points([1, 64], [(1, SMALL)], 8192)[-1].ends == [33, 8192]
    assert points([1, 64], [(1, SMALL)], 32)[-1].ends == [33]
    assert points([1], [(1, SMALL)], 1)[-1].ends == []


@pytest.mark.parametrize("tokens", [1, 64, 65, 1024, 4096])
def test_what_is_tried_may_fit(tokens: int) -> None:
    tried = candidates(QWEN, tokens, SHARED_MEMORY)
    assert 50 < len(tried) < 200
    assert len({tuple(each.items()) for each in tried}) == len(tried)
    for each in tried:
        buffers = (each["BLOCK_SIZE_M"] + each["BLOCK_SIZE_N"]) * each["BLOCK_SIZE_K"] * 2 * (each["num_stages"] - 1)
        assert buffers <= SHARED_MEMORY
        assert each.keys() == tile().keys()
    assert len(candidates(QWEN, tokens, SHARED_MEMORY // 4)) < len(tried)


def test_rows_grow_with_the_tokens_of_an_expert() -> None:
    rows = {n: {each["BLOCK_SIZE_M"] for each in candidates(QWEN, n, SHARED_MEMORY)} for n in (1, 512, 4096)}
    assert rows == {1: {16, 32}, 512: {16, 32, 64, 128}, 4096: {64, 128}}
    groups = {n: {each["GROUP_SIZE_M"] for each in candidates(QWEN, n, SHARED_MEMORY)} for n in (1, 4096)}
    assert groups == {1: {1}, 4096: {16}}


def test_a_block_of_fp8_has_one_scale() -> None:
    blocks = replace(QWEN, fp8=True, block=(128, 128))
    assert {each["BLOCK_SIZE_K"] for each in candidates(blocks, 64, SHARED_MEMORY)} == {64, 128}
    whole = replace(QWEN, fp8=True)
    assert {each["BLOCK_SIZE_K"] for each in candidates(whole, 64, SHARED_MEMORY)} == {64, 128, 256}


def test_narrow_blocks_are_for_shapes_that_others_do_not_fit() -> None:
    assert 32 not in {each["BLOCK_SIZE_K"] for each in candidates(QWEN, 64, SHARED_MEMORY)}
    narrow = replace(QWEN, width=352)
    assert {each["BLOCK_SIZE_K"] for each in candidates(narrow, 64, SHARED_MEMORY)} == {32, 64, 128, 256}


def test_other_groups_are_all_but_its_own() -> None:
    assert [each["GROUP_SIZE_M"] for each in regrouped(tile(group=16))] == [1, 32, 64]
    assert {each["num_stages"] for each in regrouped(tile(stages=5))} == {5}
