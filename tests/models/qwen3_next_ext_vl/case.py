"""Qwen3-Next-Ext behind a vision tower: a trained checkpoint, which names and counts what pictures show."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from reference.cases import DATA, Case, Config, Logits, read_config
from reference.checkpoints import PICTURE_VOCAB_SIZE, VOCAB_SIZE, Draw

from models.qwen3_next.case import CONFIG as QWEN3_NEXT
from models.qwen3_next_ext.case import without_rope
from models.qwen3_next_ext_vl.reference import Qwen3NextExtVL, prepared

TRAINED = DATA / "qwen3-next-ext-vl"  # its README.md says what it is

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3NextExtVLForConditionalGeneration"],
    "model_type": "qwen3_next_ext_vl",
    "text_config": QWEN3_NEXT
    | {
        "architectures": ["Qwen3NextExtForCausalLM"],
        "model_type": "qwen3_next_ext",
        "vocab_size": PICTURE_VOCAB_SIZE,
        "num_hidden_layers": 4,
        "full_attention_interval": 2,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "nope_layers": [3],
        "partial_rotary_factor": 0.5,
        "num_experts": 8,
        "moe_intermediate_size": 48,
        "scoring_func": "sigmoid",
        "n_group": 4,
        "topk_group": 2,
        "head_adapter_rank": 8,
        "logit_transform": "softcap",
        "logit_softcap": 15.0,
    },
    "vision_config": {
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "patch_size": 8,
        "merge_size": 2,
        "layer_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "min_pixels": 32 * 32,
        "max_pixels": 128 * 128,
    },
    "image_token_id": VOCAB_SIZE + 1,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": [0, 3],  # an answer ends with <|im_end|>
    "pad_token_id": 0,
    "dtype": "float32",
    "torch_dtype": "float32",
}


def added_by(model: type[Qwen3NextExtVL]) -> Callable[[Config], dict[str, torch.Tensor]]:
    """Make what draws the tensors that a reference model has beside those of Qwen3-Next-Ext-VL."""
    return lambda config: Draw(seed=0).added(Qwen3NextExtVL(config), model(config))


def ask(model: Qwen3NextExtVL, prompt: Sequence[int], files: Sequence[bytes] = ()) -> tuple[list[int], Logits]:
    """Put a prompt with pictures to the reference model."""
    pictures = [prepared(file, model.config["vision_config"]) for file in files]
    return model.expand(prompt, pictures), functools.partial(model.logits, pictures=pictures)


def written(of: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Give a config.json whose text model is an adopted Qwen3-Next."""
    config = read_config(TRAINED)
    return {**config, "text_config": {**of["qwen3_next"], **without_rope(config["text_config"])}}


CASE = Case(
    config=read_config(TRAINED),
    trained=TRAINED,
    load=lambda folder, dtype: Qwen3NextExtVL.load(folder).to(dtype),
    ask=ask,
    pictures=True,
    right=0.95,
    upstream="qwen3-next",
    state=True,
    lora=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    written=written,
)
