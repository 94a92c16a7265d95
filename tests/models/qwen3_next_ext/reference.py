"""The reference model of Qwen3-Next-Ext: Qwen3-Next with layers without rotary, a sigmoid router and a shaped head.

Attention, gated delta net and caches are those of transformers. Its sparse MoE block differs between versions, so this
model has its own, whose tensors are named as in the released checkpoints: nothing is converted when it is loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from reference.checkpoints import require_all
from reference.logits import shape_logits
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen3_next.modeling_qwen3_next import (
    Qwen3NextDecoderLayer,
    Qwen3NextGatedDeltaNet,
    Qwen3NextMLP,
    Qwen3NextRMSNorm,
    Qwen3NextSparseMoeBlock,
    torch_chunk_gated_delta_rule,
)


class Qwen3NextExtConfig(Qwen3NextConfig):  # type: ignore[misc]  # transformers has no types
    """The configuration of Qwen3-Next with Ext's keys as attributes; `nope_layers` are the layers without rotary."""

    model_type = "qwen3_next_ext"  # not Qwen3-Next's, for which transformers 5 fuses the experts' tensors

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:  # noqa: ANN401  # as in transformers
        """Read config.json, where `nope_layers` may be left out."""
        return super().from_dict({"nope_layers": [], **config_dict}, **kwargs)


class Qwen3NextExt(Qwen3NextForCausalLM):  # type: ignore[misc]
    """Qwen3-Next with the extensions that config.json switches on."""

    config_class = Qwen3NextExtConfig

    def __init__(self, config: Qwen3NextExtConfig) -> None:
        super().__init__(config)
        for i, layer in enumerate(self.model.layers):
            _use_moe(layer, config)
            if i in config.nope_layers:
                layer.self_attn.register_forward_pre_hook(_without_rotary, with_kwargs=True)
        rank = getattr(config, "head_adapter_rank", 0)
        self.head_adapter = _HeadAdapter(config.hidden_size, rank) if rank else nn.Identity()

    @classmethod
    def from_pretrained(cls, folder: Path | str, **kwargs: Any) -> Qwen3NextExt:  # noqa: ANN401
        """Load a checkpoint folder. Raises ValueError unless its tensors are the model's, `mtp.*` aside."""
        model, found = super().from_pretrained(folder, output_loading_info=True, **kwargs)
        require_all(folder, found)
        return model  # type: ignore[no-any-return]

    def forward(self, *args: Any, **kwargs: Any) -> CausalLMOutputWithPast:  # noqa: ANN401  # as the inner model's
        """Give the logits of every position, [batch, length, vocab]; `hidden_states` is what the MTP head takes."""
        output = self.model(*args, **kwargs)
        hidden = output.last_hidden_state
        return CausalLMOutputWithPast(
            logits=self.head(hidden), past_key_values=output.past_key_values, hidden_states=hidden
        )

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Turn hidden states after the final norm, [..., hidden], into logits, [..., vocab]."""
        logits = self.lm_head(self.head_adapter(hidden))
        transform = getattr(self.config, "logit_transform", "none")
        return shape_logits(logits, transform, getattr(self.config, "logit_softcap", None))


class _Rounded:
    """The model for less than float32: the biases of routers stay in it, as transformers keeps those of DeepSeek-V3."""

    def __init__(self, config: Qwen3NextExtConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]  # of the model that this is mixed into
        # From now on: transformers 4 refuses the name of what is not there when its own part of the model is made.
        self._keep_in_fp32_modules_strict = {"e_score_correction_bias"}


def load(folder: Path, dtype: torch.dtype, model_class: type[Qwen3NextExt] = Qwen3NextExt) -> Qwen3NextExt:
    """Load a checkpoint in a dtype; `model_class` is a reference model that derives from this one."""
    rounded = type(f"Rounded{model_class.__name__}", (_Rounded, model_class), {})
    kind: Any = model_class if dtype == torch.float32 else rounded
    model: Qwen3NextExt = kind.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    if dtype == torch.float32:
        # It is the truth then: the kernels of flash-linear-attention, if transformers finds them, would round to tf32.
        for module in model.modules():
            if isinstance(module, Qwen3NextGatedDeltaNet):
                module.chunk_gated_delta_rule = torch_chunk_gated_delta_rule
    return model


class Qwen3NextExtMTP(nn.Module):  # type: ignore[misc]
    """Qwen3-Next's draft (`mtp.*`): from a position's hidden states and the next token, predict the token after it.

    Source: sglang `srt/models/qwen3_next_mtp.py`.
    """

    def __init__(self, config: Qwen3NextExtConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        config = copy.deepcopy(config)
        config.num_hidden_layers, config.layer_types = 1, ["full_attention"]
        self.pre_fc_norm_embedding = Qwen3NextRMSNorm(hidden, eps)
        self.pre_fc_norm_hidden = Qwen3NextRMSNorm(hidden, eps)
        self.fc = nn.Linear(2 * hidden, hidden, bias=False)
        self.layers = nn.ModuleList([Qwen3NextDecoderLayer(config, 0)])
        self.norm = Qwen3NextRMSNorm(hidden, eps)
        _use_moe(self.layers[0], config)

    def forward(self, model: Qwen3NextExt, hidden: torch.Tensor, next_tokens: torch.Tensor) -> torch.Tensor:
        """Give what `model.head` turns into the draft's logits, and what a second step of the draft takes.

        - `hidden`: [batch, length, hidden], of the model's positions 0 to length - 1, after its final norm.
        - `next_tokens`: [batch, length], the tokens at positions 1 to length.
        """
        embedded = self.pre_fc_norm_embedding(model.model.embed_tokens(next_tokens))
        x = self.fc(torch.cat((embedded, self.pre_fc_norm_hidden(hidden)), dim=-1))
        length = x.shape[1]
        future = torch.full((1, 1, length, length), torch.finfo(x.dtype).min, device=x.device).triu(1)
        positions = torch.arange(length, device=x.device)[None]
        rotary = model.model.rotary_emb(x, positions)
        return self.norm(self.layers[0](x, position_embeddings=rotary, attention_mask=future, position_ids=positions))


def load_draft(model: Qwen3NextExt, folder: Path) -> Qwen3NextExtMTP:
    """Load a checkpoint's draft beside its model. Raises RuntimeError unless the `mtp.*` tensors are the draft's."""
    tensors = {name: tensor for shard in folder.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    draft = Qwen3NextExtMTP(model.config)
    draft.load_state_dict({k.removeprefix("mtp."): v for k, v in tensors.items() if k.startswith("mtp.")})
    return draft


class _HeadAdapter(nn.Module):  # type: ignore[misc]
    """A residual of low rank: h + up(down(h))."""

    def __init__(self, hidden: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, rank, bias=False)
        self.up = nn.Linear(rank, hidden, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.up(self.down(hidden))


class Router(nn.Linear):  # type: ignore[misc]
    """Choose experts by softmax, as Qwen3-Next does, or by sigmoid with a bias and groups, as DeepSeek-V3 does.

    `margin`, set to infinity by whoever wants to know, becomes the smallest distance, outside training, between a value
    that was chosen and one that was not: where it is nearly 0, rounding decides.
    Source: DeepSeek-V3 Technical Report, section 2.1.2, formulas 13 to 16.
    """

    def __init__(self, config: Qwen3NextExtConfig) -> None:
        super().__init__(config.hidden_size, config.num_experts, bias=False)
        self.chosen = config.num_experts_per_tok
        self.margin = torch.inf
        self.normalize = config.norm_topk_prob
        self.sigmoid = getattr(config, "scoring_func", "softmax") == "sigmoid"
        if self.sigmoid:
            self.groups, self.chosen_groups = getattr(config, "n_group", 1), getattr(config, "topk_group", 1)
            self.register_buffer("e_score_correction_bias", torch.zeros(config.num_experts))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Give each expert's weight in each token, 0 for those not chosen: [tokens, hidden] -> [tokens, experts]."""
        logits = super().forward(hidden).float()
        if self.sigmoid:
            scores = logits.sigmoid()
            choice = (scores + self.e_score_correction_bias).unflatten(-1, (self.groups, -1))
            of_groups = choice.topk(2, dim=-1).values.sum(-1)
            closed = torch.ones_like(of_groups, dtype=torch.bool)
            closed = closed.scatter(-1, of_groups.topk(self.chosen_groups, dim=-1).indices, False)
            self._note_margin(of_groups, self.chosen_groups)
            choice = choice.masked_fill(closed[..., None], -torch.inf).flatten(-2)
        else:
            scores = choice = logits.softmax(dim=-1)
        self._note_margin(choice, self.chosen)
        experts = choice.topk(self.chosen, dim=-1).indices
        weights = torch.zeros_like(scores).scatter(-1, experts, scores.gather(-1, experts))
        return weights / weights.sum(dim=-1, keepdim=True) if self.normalize else weights

    def _note_margin(self, values: torch.Tensor, chosen: int) -> None:
        if not self.training and chosen < values.shape[-1]:
            best = values.detach().topk(chosen + 1, dim=-1).values
            self.margin = min(self.margin, (best[..., -2] - best[..., -1]).min().item())


class _SparseMoe(nn.Module):  # type: ignore[misc]
    """Experts behind a Router, and a shared expert behind a gate of its own.

    Every expert sees every token. With the few small experts of a test that is quicker than to sort tokens. In float32
    they are one wide MLP side by side, whose inner activations the router scales, which keeps an accelerator busy. In
    another dtype each expert's part is rounded by itself and they are added in that dtype, as transformers does.
    """

    def __init__(self, config: Qwen3NextExtConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = nn.ModuleList(
            Qwen3NextMLP(config, intermediate_size=config.moe_intermediate_size) for _ in range(config.num_experts)
        )
        self.shared_expert = Qwen3NextMLP(config, intermediate_size=config.shared_expert_intermediate_size)
        self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map [batch, length, hidden] to the same shape."""
        weights = self.gate(hidden.flatten(0, 1)).to(hidden.dtype).view(*hidden.shape[:-1], -1)
        shared = self.shared_expert_gate(hidden).sigmoid() * self.shared_expert(hidden)
        if hidden.dtype != torch.float32:
            total = torch.zeros_like(hidden)
            for expert, weight in zip(self.experts, weights.split(1, dim=-1), strict=True):
                total += expert(hidden) * weight
            return total + shared
        gate, up = (
            torch.cat([getattr(expert, name).weight for expert in self.experts]) for name in ("gate_proj", "up_proj")
        )
        down = torch.cat([expert.down_proj.weight for expert in self.experts], dim=1)
        inner = self.experts[0].act_fn(functional.linear(hidden, gate)) * functional.linear(hidden, up)
        scaled = inner.unflatten(-1, (len(self.experts), -1)) * weights[..., None]
        return functional.linear(scaled.flatten(-2), down) + shared


def _use_moe(layer: Qwen3NextDecoderLayer, config: Qwen3NextExtConfig) -> None:
    if isinstance(layer.mlp, Qwen3NextSparseMoeBlock):
        layer.mlp = _SparseMoe(config)


def _without_rotary(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turn every angle of a call to attention into zero: cosine 1, sine 0."""
    cosine, sine = kwargs["position_embeddings"]
    return args, kwargs | {"position_embeddings": (torch.ones_like(cosine), torch.zeros_like(sine))}
