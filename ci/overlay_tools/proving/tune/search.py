"""Which tiles a file gets: all are tried quickly, the best few carefully, and upstream's own stay where none wins."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from overlay_tools import console
from overlay_tools.proving.tune.shape import Shape
from overlay_tools.proving.tune.tiles import Point, Tile, candidates, regrouped

WINS = 1.02  # times as fast as upstream's default: what is less may be noise
_SCREENED, _CAREFUL, _AT_ENDS = 3, 9, 5  # rounds
_BEST, _REGROUPED = 4, 2  # of those screened, so many are measured carefully, and so many of these with other groups
_SMALL = 64  # tokens up to which groups make no difference

Progress = Callable[[int, int], None]


class Bench(Protocol):
    """Runs upstream's kernel."""

    def compile(self, wanted: Sequence[tuple[Tile, Sequence[int]]], progress: Progress) -> None:
        """Compile tiles for some numbers of tokens each, so that measuring finds them compiled."""

    def time(self, tokens: int, tiles: Sequence[Tile], rounds: int) -> tuple[list[float], list[list[float] | None]]:
        """Measure in turns; return microseconds in each round of upstream's default, and of each tile that runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What a file gets for a point: `tile`, and microseconds with upstream's `default` and with it, medians.

    `faster`, times as fast, the median of the rounds; 1 if `tile` is upstream's own.
    """

    point: Point
    tile: Tile
    default: float
    tuned: float
    faster: float


def search(
    bench: Bench,
    shape: Shape,
    grid: Sequence[Point],
    shared_memory: int,
) -> list[Choice]:
    """Choose a tile for each point: one that is never slower than upstream's default where the point counts.

    It shows its steps, and how far each is.

    Parameters: `shared_memory`, bytes that a block may have.
    """
    tried = {point.tokens: candidates(shape, point.tokens, shared_memory) for point in grid}
    finals: dict[int, list[Tile]] = {}
    choices: list[Choice] = []

    wanted = _together((tile, [tokens]) for tokens, tiles in tried.items() for tile in tiles)
    with console.step(f"Compile {len(wanted)} tiles"):
        bench.compile(wanted, console.progress)
    with console.step(f"Try them, for {len(grid)} numbers of tokens"):
        for number, point in enumerate(grid):
            console.progress(number, len(grid))
            best = _fastest(bench, point.tokens, tried[point.tokens], _SCREENED)[:_BEST]
            again = best[:_REGROUPED] if point.tokens > _SMALL else []
            finals[point.tokens] = best + [other for tile in again for other in regrouped(tile)]
    closer = _together((tile, [p.tokens, *p.ends]) for p in grid for tile in finals[p.tokens])
    with console.step(f"Compile {len(closer)} tiles that are near the best"):
        bench.compile(closer, console.progress)
    with console.step("Measure the best beside upstream's default"):
        for number, point in enumerate(grid):
            console.progress(number, len(grid))
            choices.append(choose(bench, point, finals[point.tokens]))
    return choices


def choose(bench: Bench, point: Point, tiles: Sequence[Tile]) -> Choice:
    """Return the fastest of some tiles that wins at a point and is not slower at its ends, or else the default."""
    own, found = bench.time(point.tokens, tiles, _CAREFUL)
    default = statistics.median(own)
    faster = [(ratio(own, times), tile, statistics.median(times)) for tile, times in _run(tiles, found)]
    for gain, tile, tuned in sorted(faster, key=lambda each: -each[0]):
        if gain < WINS:
            break
        if all(_fastest(bench, end, [tile], _AT_ENDS, at_least=1.0) for end in point.ends):
            return Choice(point=point, tile=tile, default=default, tuned=tuned, faster=gain)
    return Choice(point=point, tile=point.default, default=default, tuned=default, faster=1.0)


def ratio(default: Sequence[float], times: Sequence[float]) -> float:
    """Return how many times as fast as the default it was, the median of the rounds."""
    return statistics.median(a / b for a, b in zip(default, times, strict=True))


def dump(choices: Sequence[Choice]) -> str:
    """Return the file, as upstream reads it: a tile by the number of tokens."""
    return json.dumps({str(choice.point.tokens): choice.tile for choice in choices}, indent=4) + "\n"


def _fastest(bench: Bench, tokens: int, tiles: Sequence[Tile], rounds: int, at_least: float = 0.0) -> list[Tile]:
    """Return the tiles that run and are as fast as asked for, the fastest first."""
    own, found = bench.time(tokens, tiles, rounds)
    ranked = sorted(((ratio(own, times), tile) for tile, times in _run(tiles, found)), key=lambda each: -each[0])
    return [tile for faster, tile in ranked if faster >= at_least]


def _run(tiles: Sequence[Tile], found: Sequence[list[float] | None]) -> list[tuple[Tile, list[float]]]:
    return [(tile, times) for tile, times in zip(tiles, found, strict=True) if times is not None]


def _together(wanted: Iterable[tuple[Tile, Sequence[int]]]) -> list[tuple[Tile, list[int]]]:
    """Return each tile once, with all numbers of tokens that it is wanted for."""
    found: dict[str, tuple[Tile, set[int]]] = {}
    for tile, tokens in wanted:
        found.setdefault(json.dumps(tile), (tile, set()))[1].update(tokens)
    return [(tile, sorted(tokens)) for tile, tokens in found.values()]
