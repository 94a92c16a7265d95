"""A kernel whose times are made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from overlay_tools.proving.tune.search import Progress
from overlay_tools.proving.tune.shape import Shape
from overlay_tools.proving.tune.tiles import Tile

SMALL, LARGE = {"BLOCK_SIZE_M": 16, "GROUP_SIZE_M": 1}, {"BLOCK_SIZE_M": 64, "GROUP_SIZE_M": 8}
QWEN = Shape(experts=64, all_experts=64, width=512, hidden=2048, topk=8, dtype="bfloat16")
SHARED_MEMORY = 232_448  # bytes, an H200's


def tile(m: int = 16, n: int = 64, k: int = 64, group: int = 1, warps: int = 4, stages: int = 3) -> Tile:
    sizes = {"BLOCK_SIZE_M": m, "BLOCK_SIZE_N": n, "BLOCK_SIZE_K": k, "GROUP_SIZE_M": group}
    return {**sizes, "num_warps": warps, "num_stages": stages}


class MadeUp:
    """Takes 100 µs with upstream's default, and with a tile what `cost` says of it and the number of tokens.

    None is a tile that does not run. Odd rounds take twice as long, all of them.
    """

    def __init__(self, cost: Callable[[int, Tile], float | None]) -> None:
        self.cost = cost
        self.compiled: list[tuple[Tile, Sequence[int]]] = []
        self.asked: list[tuple[int, Sequence[Tile], int]] = []

    def compile(self, wanted: Sequence[tuple[Tile, Sequence[int]]], progress: Progress) -> None:
        self.compiled += wanted

    def time(self, tokens: int, tiles: Sequence[Tile], rounds: int) -> tuple[list[float], list[list[float] | None]]:
        self.asked.append((tokens, tiles, rounds))
        drift = [100.0 * (1 + n % 2) for n in range(rounds)]
        costs = [self.cost(tokens, tile) for tile in tiles]
        return drift, [None if cost is None else [cost / 100 * each for each in drift] for cost in costs]
