"""Qwen3-Next with extensions: a trained checkpoint with all of them on. Its answers are peaked, its draft drafts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from reference.cases import DATA, Case, Config, Decisions, Fault, read_config
from reference.checkpoints import Draw, change_tensors, write_config
from safetensors.torch import load_file
from torch.nn import functional

from models.qwen3_next.case import CONFIG as QWEN3_NEXT
from models.qwen3_next_ext.reference import Qwen3NextExt, Qwen3NextExtConfig, load, load_draft

TRAINED = DATA / "qwen3-next-ext"  # its README.md says what it is
OFF: dict[str, Any] = dict.fromkeys(
    ("nope_layers", "scoring_func", "n_group", "topk_group", "head_adapter_rank", "logit_transform", "logit_softcap")
)
ONE_KEY = "one key for all heads"
ROPE = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")


def on(*keys: str, **values: object) -> dict[str, Any]:
    """Switch off all extensions but those of `keys`, which stay as trained, and set `values`."""
    return {key: value for key, value in OFF.items() if key not in keys} | values


def unused(config: Mapping[str, Any]) -> list[str]:
    """List parts of the names of tensors that only an extension needs that is off."""
    names = [] if config.get("scoring_func") == "sigmoid" else ["e_score_correction_bias"]
    names += [] if config["num_key_value_heads"] > 1 else [".k_proj.", ".v_proj."]  # `added` has others
    return names + ([] if config.get("head_adapter_rank") else ["head_adapter"])


def added(config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Give the keys and values that all heads share, if that is what they do: the first head's of the trained ones."""
    if config["num_key_value_heads"] > 1:
        return {}
    trained = {name: tensor for file in TRAINED.glob("*.safetensors") for name, tensor in load_file(file).items()}
    heads = {name: tensor for name, tensor in trained.items() if ".k_proj." in name or ".v_proj." in name}
    return {name: tensor[: config["head_dim"]].clone() for name, tensor in heads.items()}


def added_by(model: type[Qwen3NextExt]) -> Callable[[Config], dict[str, torch.Tensor]]:
    """Make what draws the tensors that a reference model has beside those of Qwen3-Next-Ext, from which it derives."""

    def added(config: Config) -> dict[str, torch.Tensor]:
        known, own = (one(Qwen3NextExtConfig.from_dict(config)) for one in (Qwen3NextExt, model))
        return Draw(seed=0).added(known, own)

    return added


def without_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the keys of rotary positions."""
    return {key: value for key, value in config.items() if key not in ROPE}


def written(of: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Give the config.json of an adopted Qwen3-Next."""
    return {**of["qwen3_next"], **without_rope(read_config(TRAINED))}


def widen(folder: Path) -> None:
    """Make the attention heads of a trained checkpoint twice as wide, as `widen` of a case.

    It answers as before: the added values are 0, and the norm of the queries takes back what they change in scores.
    """
    config = read_config(folder)
    size = config["head_dim"]
    wide = {"head_dim": 2 * size, "partial_rotary_factor": config["partial_rotary_factor"] / 2}
    write_config(folder, config | wide)

    def widened(name: str, tensor: torch.Tensor) -> torch.Tensor:
        kind = name.split(".")[-2]
        if kind in ("q_proj", "k_proj", "v_proj"):  # rows are those of one head after another
            return functional.pad(tensor.unflatten(0, (-1, size)), (0, 0, 0, size)).flatten(0, 1)
        if kind == "o_proj":
            return functional.pad(tensor.unflatten(1, (-1, size)), (0, size)).flatten(1, 2)
        if kind == "q_norm":
            # Over twice as many values, normed queries and keys are sqrt(2) times as large each, and scores are divided
            # by sqrt(2) times as much. Norms scale by 1 + weight.
            tensor = (1 + tensor) / math.sqrt(2) - 1
        return functional.pad(tensor, (0, size))

    change_tensors(
        folder, lambda tensors: {k: widened(k, v).contiguous() if ".self_attn." in k else v for k, v in tensors.items()}
    )


# Qwen3-Next-80B-A3B's dimensions.
BASE = QWEN3_NEXT | {
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "full_attention_interval": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "max_position_embeddings": 262144,
    "dtype": "bfloat16",
    "torch_dtype": "bfloat16",
}
EXT = BASE | {"architectures": ["Qwen3NextExtForCausalLM"], "model_type": "qwen3_next_ext"}
MAY_DIFFER = {
    "__class__": "the derived model has a class of its own",
    "model_type": "by which transformers finds that class",
    "overlay_architecture": "the derived model's own name, which only the overlay reads",
    "scoring_func": "an extension's key",
    "n_group": "an extension's key",
    "topk_group": "an extension's key",
    "head_adapter_rank": "an extension's key",
    "logit_transform": "an extension's key",
    "logit_softcap": "an extension's key",
    "checkpoint_sizes": "the sizes of its tensors, which upstream's own loader does not check",
    "layer_types": "a key of the derived class; upstream's reads none",
    "nope_layers": "an extension's key",
}
DECISIONS = Decisions(
    base=BASE,
    configuration="Qwen3NextConfig",
    derived={
        "extensions off": EXT,
        "extensions on": EXT
        | {
            "nope_layers": [*range(7, 48, 8)],
            "scoring_func": "sigmoid",
            "n_group": 8,
            "topk_group": 4,
            "head_adapter_rank": 16,
            "logit_transform": "softcap",
            "logit_softcap": 30.0,
        },
    },
    differences={
        "extensions off": MAY_DIFFER,
        "extensions on": MAY_DIFFER
        | {"layers_block_type()": "attention without rotary positions is a type of its own"},
    },
)


def without_draft(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out the draft."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("mtp.")}


def misshapen_draft(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give a tensor of the draft another shape."""
    return {name: torch.zeros(128, 128) if name == "mtp.fc.weight" else value for name, value in tensors.items()}


FAULTS = {
    "import": Fault(
        broken_import="models.qwen3_next_ext",
        said=["OverlayError: Qwen3NextExtForCausalLM: cannot import", "no such thing as a broken dependency"],
    ),
    "draft": Fault(
        tensors=misshapen_draft,
        draft=True,
        said=[r"mtp\.fc\.weight \(model-0000\d-of-00002\.safetensors\): its shape is"],
    ),
    "no draft": Fault(
        tensors=without_draft,
        draft=True,
        said=[re.escape("the checkpoint has no draft (mtp.* tensors); serve it without --speculative-algorithm")],
    ),
    "state that is not committed": Fault(
        environment={"SGLANG_ENABLE_SPEC_V2": "1"},
        draft=True,
        before="0.5.10",
        said=[r"SGLANG_ENABLE_SPEC_V2 is set: in sglang 0\.5\."],
    ),
}

CASE = Case(
    config=read_config(TRAINED),
    trained=TRAINED,
    widen=widen,
    load=load,
    draft=load_draft,
    unused=unused,
    added=added,
    upstream="qwen3-next",
    sets={
        "none": OFF,
        "nope_layers": on("nope_layers"),
        "sigmoid": on("scoring_func", "n_group", "topk_group"),
        "head_adapter": on("head_adapter_rank"),
        "softcap": on("logit_transform", "logit_softcap"),
        "sqrt_positive": on(logit_transform="sqrt_positive"),
        ONE_KEY: {"num_key_value_heads": 1},
        "all": {},
    },
    state=True,
    servers=("sets", "extra_buffer", "small pool", "drafts", "two ranks", f"two ranks, {ONE_KEY}"),
    distinct=40,
    accepted=1.5,
    nats=(0.8, 1.3),
    sums=11,  # the attention of six layers, the experts of five
    updates=("model.norm.weight", "model.layers.1.mlp.experts.2.up_proj.weight", "mtp.fc.weight"),
    lora=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    written=written,
    faults=FAULTS,
    decisions=DECISIONS,
)
