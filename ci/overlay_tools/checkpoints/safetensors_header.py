"""Shards of weights in the safetensors format, as far as their headers: names, types and sizes of the tensors."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

INDEX = "model.safetensors.index.json"
_MAX_HEADER = 100_000_000  # bytes; what readers of the format accept


class Tensor(NamedTuple):
    """A tensor of a shard: its dtype as safetensors names it, its shape, its little-endian bytes."""

    dtype: str
    shape: Sequence[int]
    data: bytes


class Stored(NamedTuple):
    """How a shard has a tensor: its dtype as safetensors names it, how many values its shape has, and its bytes."""

    dtype: str
    values: int
    size: int


def read_shard(path: Path) -> tuple[list[str], int]:
    """Return the names of a shard's tensors and how many bytes they hold, from its header.

    Raises ValueError if the file is cut short or in another format.
    """
    tensors, held = _read_header(path)
    return list(tensors), held


def measure_tensors(path: Path) -> dict[str, Stored]:
    """Return how a shard has each of its tensors, from its header.

    Raises ValueError if the file is cut short or in another format.
    """
    tensors, _ = _read_header(path)
    try:
        return {
            name: Stored(
                str(tensor["dtype"]),
                math.prod(map(int, tensor["shape"])),
                int(tensor["data_offsets"][1]) - int(tensor["data_offsets"][0]),
            )
            for name, tensor in tensors.items()
        }
    except (TypeError, LookupError, ValueError):
        raise ValueError("its header is broken") from None


def shards_of(index: Mapping[str, Any]) -> list[str]:
    """Return the names of the shards that an index of them lists.

    Raises ValueError if it lists none.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError("weight_map must map tensors to shards")
    if not weight_map:
        raise ValueError("weight_map must name a tensor")
    return sorted(set(weight_map.values()))


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return what a shard's header says of each tensor, and how many bytes they hold.

    The format is that of https://github.com/huggingface/safetensors#format; that package opens files only where
    torch or numpy is installed.
    """
    size = path.stat().st_size - 8
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(size, _MAX_HEADER):
            raise ValueError("its header is broken")
        header = stream.read(length)
    try:
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        held = max((int(tensor["data_offsets"][1]) for tensor in tensors.values()), default=0)
    except (ValueError, AttributeError, TypeError, LookupError, RecursionError, OverflowError):
        raise ValueError("its header is broken") from None
    if held != size - length:
        raise ValueError(f"it holds {size - length:,} bytes of tensors, and its header says {held:,}")
    return tensors, held


def dump_shard(tensors: Mapping[str, Tensor]) -> bytes:
    """Write a shard: the counterpart of `read_shard`, the tensors in the order given."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(tensor.data for tensor in tensors.values())
