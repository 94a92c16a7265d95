"""Tiles to try, and for which numbers of tokens a file's entries count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from overlay_tools.proving.tune.shape import Shape

Tile = dict[str, int]  # as upstream writes it: BLOCK_SIZE_M and so on
GROUPS = (1, 16, 32, 64)  # of blocks of rows that share columns
_STAGES = {32: (3, 4, 5), 64: (3, 4, 5), 128: (2, 3, 4, 5), 256: (2, 3, 4)}  # by BLOCK_SIZE_K
_FEW, _MANY = 8192, 16384  # values of a block of outputs: 8 warps from the first on, 4 up to the second


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """An entry of a file: `tokens` is its key; it counts from `low` to `high` tokens, where upstream has `default`."""

    tokens: int
    low: int
    high: int
    default: Tile

    @property
    def ends(self) -> list[int]:
        """Return the numbers of tokens farthest from the key that it counts for."""
        return sorted({self.low, self.high} - {self.tokens})


def points(batches: Sequence[int], defaults: Sequence[tuple[int, Tile]], most: int) -> list[Point]:
    """Return the entries that a file must have so that in the range of each, upstream has one default.

    Upstream takes the entry whose number of tokens is nearest, the smaller of two. So where its default changes between
    two numbers, an entry on either side parts them, unless the middle of two entries does.

    Parameters: `batches`, the entries that are asked for; `defaults`, from which number of tokens on upstream has which
    tile, the first from 1 on; `most`, the largest number of tokens in one pass.
    """
    keys = set(batches)
    while loose := [start for start, _ in defaults[1:] if not _parted(keys, start)]:
        keys |= {loose[0] - 1, loose[0]}
    ordered = sorted(keys)
    found = []
    for before, tokens, after in zip([None, *ordered], ordered, [*ordered[1:], None], strict=False):
        low = 1 if before is None else (before + tokens) // 2 + 1
        high = max(most, tokens) if after is None else (tokens + after) // 2
        default = [tile for start, tile in defaults if start <= tokens][-1]
        found.append(Point(tokens=tokens, low=low, high=high, default=default))
    return found


def _parted(keys: set[int], start: int) -> bool:
    below = max((key for key in keys if key < start), default=None)
    above = min((key for key in keys if key >= start), default=None)
    return below is not None and above is not None and (below + above) // 2 + 1 == start


def candidates(shape: Shape, tokens: int, shared_memory: int) -> list[Tile]:
    """Return the tiles to try for a number of tokens.

    Parameters: `shared_memory`, bytes that a block may have.
    """
    rows = max(1.0, tokens * shape.topk / shape.all_experts)  # of an expert, in the mean
    group = 1 if rows < 16 else 16
    return [
        {
            "BLOCK_SIZE_M": m,
            "BLOCK_SIZE_N": n,
            "BLOCK_SIZE_K": k,
            "GROUP_SIZE_M": group,
            "num_warps": warps,
            "num_stages": stages,
        }
        for m in (16, 32, 64, 128)
        if min(64, rows / 4) <= m <= 2 * max(16, rows)
        for n, k, warps, stages in _columns(shape, m)
        # Of the stages, one is being computed; a kernel that takes more all the same fails, and is left out then.
        if (m * k + k * n) * (1 if shape.fp8 else 2) * (stages - 1) <= shared_memory
    ]


def _columns(shape: Shape, m: int) -> Iterator[tuple[int, int, int, int]]:
    narrow = bool(shape.hidden % 64 or shape.width % 64)
    for n in (32, 64, 128, 256):
        if not (32 if m <= 32 else 64) <= n <= (128 if m == 16 else 256):
            continue
        for k, depths in _STAGES.items():
            # A block of K has one scale.
            if (k == 32 and not narrow) or k > shape.hidden or (shape.block and shape.block[1] % k):
                continue
            for warps in (4, 8):
                if (warps == 4 and m * n <= _MANY) or (warps == 8 and m * n >= _FEW):
                    yield from ((n, k, warps, stages) for stages in depths)


def regrouped(tile: Tile) -> list[Tile]:
    """Return a tile with each of the other groups."""
    return [{**tile, "GROUP_SIZE_M": group} for group in GROUPS if group != tile["GROUP_SIZE_M"]]
