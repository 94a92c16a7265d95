"""Llama with a transform of its logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from reference.cases import Case, Fault, with_transformers

from models.llama.case import CONFIG as LLAMA
from models.llama.case import SEED, weights
from models.llama_logit_shaping.reference import LlamaLogitShaping

OWN = {"architectures": ["LlamaLogitShapingForCausalLM"], "logit_transform": "softcap", "logit_softcap": 10.0}


def break_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out one tensor, add one, and give one another shape."""
    del tensors["model.layers.1.mlp.up_proj.weight"]
    more = {"model.layers.7.mlp.up_proj.weight": torch.zeros(256, 128)}
    return tensors | more | {"model.layers.0.self_attn.k_proj.weight": torch.zeros(96, 128)}


def written(of: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Give the config.json of an adopted Llama."""
    return {**of["llama"], **OWN}


CASE = Case(
    config=LLAMA | OWN,
    weights=weights,
    seed=SEED,
    load=with_transformers(LlamaLogitShaping),
    upstream="llama",
    sets={
        "none": {"logit_transform": None, "logit_softcap": None},
        "softcap": {},
        "sqrt_positive": {"logit_transform": "sqrt_positive", "logit_softcap": None},
    },
    served="softcap",
    lora=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    written=written,
    faults={
        "import": Fault(
            broken_import="models.llama_logit_shaping",
            said=["OverlayError: LlamaLogitShapingForCausalLM: cannot import", "no such thing as a broken dependency"],
        ),
        "tensors": Fault(
            tensors=break_tensors,
            said=[
                r"model\.layers\.1\.mlp\.up_proj\.weight: missing",
                r"model\.layers\.7\.mlp\.up_proj\.weight \(model\.safetensors\): not a tensor of this model",
                r"0\.self_attn\.k_proj\.weight \(model\.safetensors\): its shape is \(96, 128\), not \(64, 128\)",
            ],
        ),
        "configuration": Fault(
            changes={"logit_softcap": -1.0},
            said=[r"config\.json: logit_softcap must be a finite number above 0, not -1\.0"],
        ),
    },
)
