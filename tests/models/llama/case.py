"""Upstream's own Llama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from reference.cases import Case, with_transformers
from reference.checkpoints import COMMON, Draw
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 3,
    "mlp_bias": False,
}


def weights(config: Mapping[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Draw the weights of a Llama."""
    with torch.device("meta"):
        state = LlamaForCausalLM(LlamaConfig(**config)).state_dict()
    return Draw(seed).fill({name: tuple(tensor.shape) for name, tensor in state.items()})


SEED = 8
CASE = Case(config=CONFIG, weights=weights, seed=SEED, load=with_transformers(LlamaForCausalLM), ours=False)
