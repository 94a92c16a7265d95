"""The reference model of `sglang.srt.models.llama_logit_shaping`: the same files, the same numbers, no engine."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast


class LlamaLogitShaping(LlamaForCausalLM):  # type: ignore[misc]  # transformers has no types
    """Llama whose logits pass through the transform that `logit_transform` in config.json names."""

    def forward(self, *args: Any, **kwargs: Any) -> CausalLMOutputWithPast:  # noqa: ANN401  # as they come
        output = super().forward(*args, **kwargs)
        output.logits = shape_logits(
            output.logits,
            getattr(self.config, "logit_transform", "none"),
            getattr(self.config, "logit_softcap", None),
        )
        return output


def shape_logits(logits: torch.Tensor, transform: str, cap: float | None) -> torch.Tensor:
    """Apply one of the three transforms to a tensor of logits of any shape.

    softcap: cap * (e^y - e^-y) / (e^y + e^-y) with y = logits / cap. sqrt_positive: x^0.5 where x > 0, else 0.
    """
    if transform == "softcap":
        y = logits.double() / cap
        return (cap * (y.exp() - (-y).exp()) / (y.exp() + (-y).exp())).to(logits.dtype)
    if transform == "sqrt_positive":
        return torch.where(logits > 0, logits.abs() ** 0.5, torch.zeros_like(logits))
    return logits
