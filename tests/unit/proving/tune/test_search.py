"""Which tiles a file gets, of times that are made up."""

from __future__ import annotations

import json

import pytest
from overlay_tools.proving.tune.search import Choice, choose, dump, search
from overlay_tools.proving.tune.tiles import Point, Tile, points

from unit.proving.tune.made_up import LARGE, QWEN, SHARED_MEMORY, SMALL, MadeUp, tile

POINT = Point(tokens=64, low=57, high=64, default=SMALL)
FAST, FASTER = tile(n=32), tile(n=128)


@pytest.mark.parametrize(("cost", "wins"), [(97.0, True), (98.5, False), (100.0, False), (250.0, False), (None, False)])
def test_the_default_stays_where_nothing_is_two_percent_faster(cost: float | None, wins: bool) -> None:
    choice = choose(MadeUp(lambda tokens, tile: cost), POINT, [FAST])
    assert choice.tile == (FAST if wins else SMALL)
    assert choice.default == 100
    assert choice.tuned == (cost if wins else 100)
    assert (choice.faster > 1) is wins


def test_the_fastest_wins_and_what_does_not_run_is_left_out() -> None:
    costs = {json.dumps(FAST): 90.0, json.dumps(FASTER): 60.0}
    bench = MadeUp(lambda tokens, tile: costs.get(json.dumps(tile)))
    choice = choose(bench, POINT, [FAST, tile(k=256), FASTER])
    assert choice.tile == FASTER
    assert choice.faster == pytest.approx(100 / 60)


def test_what_is_slower_at_an_end_of_where_it_counts_does_not_win() -> None:
    """Upstream takes the entry for 64 tokens from 57 on."""
    bench = MadeUp(lambda tokens, tile: 101.0 if (tokens, tile) == (57, FASTER) else 60.0 if tile == FASTER else 90.0)
    assert choose(bench, POINT, [FAST, FASTER]).tile == FAST
    worse = MadeUp(lambda tokens, tile: 101.0 if tokens == 57 else 60.0)
    assert choose(worse, POINT, [FAST, FASTER]).tile == SMALL


def test_what_does_not_run_at_an_end_does_not_win() -> None:
    assert choose(MadeUp(lambda tokens, tile: 60.0 if tokens == 64 else None), POINT, [FAST]).tile == SMALL


def searched(bench: MadeUp, batches: list[int]) -> list[Choice]:
    grid = points(batches, [(1, SMALL), (65, LARGE)], 8192)
    return search(bench, QWEN, grid, SHARED_MEMORY)


def test_the_best_of_all_is_found_for_each_number_of_tokens() -> None:
    best = {
        1: tile(m=32, n=32, k=128, stages=4),
        64: tile(n=128, k=128, stages=5),
        65: tile(n=64, k=256, stages=2),
        4096: tile(m=128, n=128, k=64, group=64, warps=8, stages=4),
    }

    def cost(tokens: int, asked: Tile) -> float:
        key = min(best, key=lambda each: abs(each - tokens))
        apart = sum(asked[name] != best[key][name] for name in asked)
        return 50.0 + 20 * apart

    assert {choice.point.tokens: choice.tile for choice in searched(MadeUp(cost), [1, 64, 4096])} == best


def test_where_nothing_wins_the_file_says_what_upstream_does() -> None:
    choices = searched(MadeUp(lambda tokens, tile: 99.0), [1, 64, 4096])
    assert {choice.point.tokens: choice.tile for choice in choices} == {1: SMALL, 64: SMALL, 65: LARGE, 4096: LARGE}


def test_all_that_is_measured_has_been_compiled_before(capsys: pytest.CaptureFixture[str]) -> None:
    bench = MadeUp(lambda tokens, tile: 90.0)
    search(bench, QWEN, points([1, 128], [(1, SMALL)], 8192), SHARED_MEMORY)
    steps = capsys.readouterr().out.splitlines()
    compiled = {(n, json.dumps(each)) for each, tokens in bench.compiled for n in tokens}
    measured = {(n, json.dumps(each)) for n, tiles, _ in bench.asked for each in tiles}
    assert measured <= compiled
    first = [json.dumps(each) for each, _ in bench.compiled[: int(steps[0].split()[1])]]
    assert len(set(first)) == len(first)
    assert [step.split()[0] for step in steps] == ["Compile", "Try", "Compile", "Measure"]


def test_few_rounds_are_for_all_and_many_for_the_best() -> None:
    bench = MadeUp(lambda tokens, tile: 99.0)
    searched(bench, [1])
    assert [(len(tiles) > 20, rounds) for _, tiles, rounds in bench.asked[:4]] == [(True, 3)] * 3 + [(False, 9)]


def test_the_file_is_what_upstream_reads() -> None:
    """It makes numbers of the keys, takes the nearest, and passes the values on to Triton."""
    text = dump(searched(MadeUp(lambda tokens, tile: 50.0 if tokens < 60 else 120.0), [1, 4096]))
    read = {int(key): value for key, value in json.loads(text).items()}
    assert list(read) == [1, 64, 65, 4096]
    assert read[1].keys() == tile().keys()
    assert all(isinstance(number, int) for of in read.values() for number in of.values())
    assert read[min(read.keys(), key=lambda key: abs(key - 70))] == LARGE
    assert text.endswith("}\n")
