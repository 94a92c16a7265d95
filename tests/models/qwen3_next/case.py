"""Upstream's own Qwen3-Next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from reference.cases import Case, with_transformers
from reference.checkpoints import COMMON, Draw
from transformers import Qwen3NextForCausalLM

CONFIG = COMMON | {
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "num_hidden_layers": 6,
    "full_attention_interval": 3,  # layers 2 and 5 have attention, the others a gated delta net
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


def weights(config: Mapping[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Draw the weights of a Qwen3-Next with its draft, named as in the released checkpoints."""
    draw, hidden, vocab = Draw(seed), config["hidden_size"], config["vocab_size"]
    found = {"model.embed_tokens.weight": draw.normal(vocab, hidden, std=1.0)}
    for i in range(config["num_hidden_layers"]):
        layer = layer_weights(config, i, draw)
        found |= {f"model.layers.{i}.{name}": tensor for name, tensor in layer.items()}
    found["model.norm.weight"] = draw.normal(hidden)  # Qwen3-Next's norms scale by 1 + weight
    found |= draft_weights(config, draw)
    found["lm_head.weight"] = draw.head(vocab, hidden, std=0.2)
    return found


def layer_weights(config: Mapping[str, Any], index: int, draw: Draw) -> dict[str, torch.Tensor]:
    """Draw the weights of a layer."""
    hidden = config["hidden_size"]
    layer = {"input_layernorm.weight": draw.normal(hidden), "post_attention_layernorm.weight": draw.normal(hidden)}
    if (index + 1) % config["full_attention_interval"] == 0:
        head_dim = config["head_dim"]
        q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
        layer |= {
            "self_attn.q_proj.weight": draw.normal(2 * q, hidden),  # the queries and their gates
            "self_attn.k_proj.weight": draw.normal(kv, hidden),
            "self_attn.v_proj.weight": draw.normal(kv, hidden),
            "self_attn.o_proj.weight": draw.normal(hidden, q),
            "self_attn.q_norm.weight": draw.normal(head_dim),
            "self_attn.k_norm.weight": draw.normal(head_dim),
        }
    else:
        heads, value_dim = config["linear_num_value_heads"], config["linear_value_head_dim"]
        k, v = config["linear_num_key_heads"] * config["linear_key_head_dim"], heads * value_dim
        layer |= {
            "linear_attn.in_proj_qkvz.weight": draw.normal(2 * k + 2 * v, hidden),
            "linear_attn.in_proj_ba.weight": draw.normal(2 * heads, hidden),
            "linear_attn.conv1d.weight": draw.normal(2 * k + v, 1, config["linear_conv_kernel_dim"], std=0.4),
            "linear_attn.dt_bias": draw.normal(heads, std=0.5),
            "linear_attn.A_log": draw.log_uniform(heads, low=0.2, high=4.0),
            "linear_attn.norm.weight": draw.normal(value_dim, mean=1.0),
            "linear_attn.out_proj.weight": draw.normal(hidden, v),
        }
    inner = config["moe_intermediate_size"]
    layer["mlp.gate.weight"] = draw.normal(config["num_experts"], hidden)
    for expert in range(config["num_experts"]):
        layer |= _mlp(f"mlp.experts.{expert}.", hidden, inner, draw)
    layer |= _mlp("mlp.shared_expert.", hidden, config["shared_expert_intermediate_size"], draw)
    layer["mlp.shared_expert_gate.weight"] = draw.normal(1, hidden)
    return layer


def draft_weights(config: Mapping[str, Any], draw: Draw) -> dict[str, torch.Tensor]:
    """Draw Qwen3-Next's multi-token-prediction head: one layer with attention, behind a projection of two inputs."""
    hidden = config["hidden_size"]
    layer = layer_weights(config, config["full_attention_interval"] - 1, draw)
    return {
        **{f"mtp.layers.0.{name}": tensor for name, tensor in layer.items()},
        "mtp.fc.weight": draw.normal(hidden, 2 * hidden, std=1 / math.sqrt(2 * hidden)),
        "mtp.pre_fc_norm_embedding.weight": draw.normal(hidden),
        "mtp.pre_fc_norm_hidden.weight": draw.normal(hidden),
        "mtp.norm.weight": draw.normal(hidden),
    }


def _mlp(prefix: str, hidden: int, inner: int, draw: Draw) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}gate_proj.weight": draw.normal(inner, hidden),
        f"{prefix}up_proj.weight": draw.normal(inner, hidden),
        f"{prefix}down_proj.weight": draw.normal(hidden, inner),
    }


CASE = Case(
    config=CONFIG, weights=weights, seed=36, load=with_transformers(Qwen3NextForCausalLM), ours=False, state=True
)
