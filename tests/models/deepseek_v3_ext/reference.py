"""The reference model of DeepSeek-V3-Ext: DeepSeek-V3 with biased routers and a transform of the logits, and its draft.

Attention and caches are those of transformers. Its MoE block differs between versions, so this model has its own, whose
tensors are named as in the released checkpoints: nothing is converted when it is loaded.
"""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from reference.checkpoints import configuration, require_all
from reference.logits import shape_logits
from safetensors.torch import load_file
from torch import nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3DecoderLayer,
    DeepseekV3MLP,
    DeepseekV3MoE,
    DeepseekV3RMSNorm,
)

from models.qwen3_next_ext.reference import Router


class DeepseekV3ExtConfig(DeepseekV3Config):  # type: ignore[misc]  # transformers has no types
    """The configuration of DeepSeek-V3 with Ext's keys as attributes."""

    model_type = "deepseek_v3_ext"  # not DeepSeek-V3's, for which transformers 5 fuses the experts' tensors


class DeepseekV3Ext(DeepseekV3ForCausalLM):  # type: ignore[misc]
    """DeepSeek-V3 with the extensions that config.json switches on."""

    config_class = DeepseekV3ExtConfig

    def __init__(self, config: DeepseekV3ExtConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            _use_moe(layer, config)

    def forward(self, *args: Any, **kwargs: Any) -> CausalLMOutputWithPast:  # noqa: ANN401  # as the inner model's
        """Give the logits of every position, [batch, length, vocab]; `hidden_states` is what the draft takes."""
        output = self.model(*args, **kwargs)
        hidden = output.last_hidden_state
        return CausalLMOutputWithPast(
            logits=self.head(hidden), past_key_values=output.past_key_values, hidden_states=hidden
        )

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Turn hidden states after the final norm, [..., hidden], into logits, [..., vocab]."""
        transform = getattr(self.config, "logit_transform", "none")
        return shape_logits(self.lm_head(hidden), transform, getattr(self.config, "logit_softcap", None))


class DeepseekV3ExtDraft(nn.Module):  # type: ignore[misc]
    """DeepSeek-V3's draft: from a position's hidden states and the next token, predict the token after it.

    Source: DeepSeek-V3 Technical Report, section 2.2; the order of its inputs, sglang `srt/models/deepseek_nextn.py`.
    """

    def __init__(self, config: DeepseekV3ExtConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = DeepseekV3RMSNorm(hidden, eps)
        self.hnorm = DeepseekV3RMSNorm(hidden, eps)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False)
        one = copy.copy(config)
        one.first_k_dense_replace = 0
        self.layer = DeepseekV3DecoderLayer(one, 0)
        self.shared_head = nn.ModuleDict({"norm": DeepseekV3RMSNorm(hidden, eps)})
        _use_moe(self.layer, config)

    def forward(self, model: DeepseekV3Ext, hidden: torch.Tensor, next_tokens: torch.Tensor) -> torch.Tensor:
        """Give what `model.head` turns into the draft's logits.

        - `hidden`: [batch, length, hidden], of the model's positions 0 to length - 1, after its final norm.
        - `next_tokens`: [batch, length], the tokens at positions 1 to length.
        """
        embedded = self.enorm(model.model.embed_tokens(next_tokens))
        x = self.eh_proj(torch.cat((embedded, self.hnorm(hidden)), dim=-1))
        length = x.shape[1]
        future = torch.full((1, 1, length, length), torch.finfo(x.dtype).min, device=x.device).triu(1)
        positions = torch.arange(length, device=x.device)[None]
        rotary = model.model.rotary_emb(x, positions)
        x = self.layer(x, position_embeddings=rotary, attention_mask=future, position_ids=positions)
        return self.shared_head["norm"](x[0] if isinstance(x, tuple) else x)


def prefix_of(config: DeepseekV3ExtConfig) -> str:
    """Give the beginning of the names of the draft's tensors in a checkpoint."""
    return f"model.layers.{config.num_hidden_layers}."


def names_of_draft(config: DeepseekV3ExtConfig, draft: nn.Module) -> dict[str, torch.Tensor]:
    """Give the draft's tensors by their names in a checkpoint, where those of its layer stand beside the others."""
    return {prefix_of(config) + name.removeprefix("layer."): value for name, value in draft.state_dict().items()}


def load(folder: Path, dtype: torch.dtype) -> DeepseekV3Ext:
    """Load a checkpoint in a dtype. Raises ValueError unless its tensors are the model's, those of the draft aside."""
    config = configuration(DeepseekV3Ext, DeepseekV3ExtConfig.get_config_dict(folder)[0])
    kind: Any = type("Loaded", (DeepseekV3Ext,), {"_keys_to_ignore_on_load_unexpected": [prefix_of(config)]})
    model, found = kind.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    require_all(folder, found)
    return model  # type: ignore[no-any-return]


def load_draft(model: DeepseekV3Ext, folder: Path) -> DeepseekV3ExtDraft:
    """Load a checkpoint's draft beside its model. Raises KeyError if it lacks one of the draft's tensors."""
    tensors = {name: tensor for shard in folder.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    draft = DeepseekV3ExtDraft(model.config)
    for name, value in names_of_draft(model.config, draft).items():
        value.copy_(tensors[name])
    return draft


class _SparseMoe(nn.Module):  # type: ignore[misc]
    """Experts behind a router, and shared experts without one. Every expert sees every token."""

    def __init__(self, config: DeepseekV3ExtConfig) -> None:
        super().__init__()
        self.gate = Router(
            SimpleNamespace(  # type: ignore[arg-type]  # what it reads, by the names of Qwen3-Next
                hidden_size=config.hidden_size,
                num_experts=config.n_routed_experts,
                num_experts_per_tok=config.num_experts_per_tok,
                norm_topk_prob=config.norm_topk_prob,
                scoring_func="sigmoid",
                n_group=config.n_group,
                topk_group=config.topk_group,
            )
        )
        if getattr(config, "router_logit_bias", False):
            self.gate.bias = nn.Parameter(torch.zeros(config.n_routed_experts))
        self.scaling = config.routed_scaling_factor
        self.experts = nn.ModuleList(
            DeepseekV3MLP(config, intermediate_size=config.moe_intermediate_size)
            for _ in range(config.n_routed_experts)
        )
        self.shared_experts = DeepseekV3MLP(
            config, intermediate_size=config.moe_intermediate_size * config.n_shared_experts
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map [batch, length, hidden] to the same shape."""
        weights = self.gate(hidden.flatten(0, 1)).view(*hidden.shape[:-1], -1) * self.scaling
        routed = sum(
            expert(hidden) * weight.to(hidden.dtype)
            for expert, weight in zip(self.experts, weights.split(1, dim=-1), strict=True)
        )
        return routed + self.shared_experts(hidden)


def _use_moe(layer: DeepseekV3DecoderLayer, config: DeepseekV3ExtConfig) -> None:
    if isinstance(layer.mlp, DeepseekV3MoE):
        layer.mlp = _SparseMoe(config)
