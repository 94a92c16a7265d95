"""The trained checkpoint with layers as large as upstream's kernels for weights quantised by blocks take them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from reference.cases import read_config
from reference.checkpoints import change_tensors, write_config
from reference.fp8 import BLOCK
from torch.nn import functional

TIMES = 4  # of each head
RANKS = 2  # each with whole blocks

_HEADS = ("num_attention_heads", "num_key_value_heads", "linear_num_key_heads", "linear_num_value_heads")
_INNER = ("moe_intermediate_size", "shared_expert_intermediate_size")
_PARTS_OF_HEADS = ("q_proj", "k_proj", "v_proj", "in_proj_qkvz", "in_proj_ba", "dt_bias", "A_log")


def fit_blocks(folder: Path) -> None:
    """Make the layers of a trained checkpoint so large that each of two ranks has whole blocks, in its folder.

    It answers as before. Each head is there four times, and a quarter of each is taken; experts have neurons of zeros.
    """
    config = read_config(folder)
    sizes = {key: TIMES * config[key] for key in _HEADS} | dict.fromkeys(_INNER, RANKS * BLOCK)
    write_config(folder, config | sizes)
    change_tensors(folder, lambda tensors: {k: _fitted(k, v, config).contiguous() for k, v in tensors.items()})


def _fitted(name: str, tensor: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    parts = name.removesuffix(".weight").split(".")
    kind = parts[-1]
    if ".mlp." in name and kind in ("gate_proj", "up_proj"):
        return _with_zeros(tensor)
    if ".mlp." in name and kind == "down_proj":
        return _with_zeros(tensor.T).T
    if kind in _PARTS_OF_HEADS:  # its rows are those of one head, or group of heads, after another
        return torch.cat([tensor] * TIMES)
    if kind in ("o_proj", "out_proj"):
        return torch.cat([tensor / TIMES] * TIMES, dim=1)
    if kind == "conv1d":  # of all queries, all keys and all values
        keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
        values = config["linear_num_value_heads"] * config["linear_value_head_dim"]
        return torch.cat([part for of in tensor.split((keys, keys, values)) for part in [of] * TIMES])
    return tensor


def _with_zeros(rows: torch.Tensor) -> torch.Tensor:
    """Give each rank its share of the rows, and rows of zeros after them."""
    shares = rows.unflatten(0, (RANKS, -1))
    return functional.pad(shares, (0, 0, 0, BLOCK - shares.shape[1])).flatten(0, 1)
