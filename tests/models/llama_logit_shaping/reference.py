"""The reference model of `sglang.srt.models.llama_logit_shaping`: the same files, the same numbers, no engine."""

from __future__ import annotations

from typing import Any

from reference.logits import shape_logits
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
