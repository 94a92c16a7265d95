"""Transforms of the logits, chosen in a checkpoint's config.json, and the logits processor that applies them.

    "logit_transform": "softcap",
    "logit_softcap": 30.0

`logit_transform` is "none" (the default), "softcap" or "sqrt_positive".
"""

import math
from collections.abc import Callable

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor
from transformers import PretrainedConfig


def softcap_(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """Replace `logits` by `cap * tanh(logits / cap)`, which stays between -cap and cap, as in Gemma 2."""
    return logits.div_(cap).tanh_().mul_(cap)


def sqrt_positive_(logits: torch.Tensor) -> torch.Tensor:
    """Replace `logits` by the square root of its positive part: 0 where it is negative."""
    return logits.clamp_(min=0).sqrt_()


def logit_transform(config: PretrainedConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """Read the transform from a checkpoint's configuration: a function that changes the logits in place.

    Raises ValueError, naming the key of config.json, on a value that is missing, out of range or without effect.
    """
    kind = getattr(config, "logit_transform", "none")
    cap = getattr(config, "logit_softcap", None)
    if kind not in ("none", "softcap", "sqrt_positive"):
        raise ValueError(f"config.json: logit_transform must be 'none', 'softcap' or 'sqrt_positive', not {kind!r}")
    if kind != "none" and getattr(config, "final_logit_softcapping", None) is not None:
        raise ValueError("config.json: final_logit_softcapping (upstream's own cap) excludes logit_transform; drop one")
    if kind == "softcap":
        if isinstance(cap, bool) or not isinstance(cap, (int, float)) or not 0 < cap < math.inf:
            raise ValueError(f"config.json: logit_softcap must be a finite number above 0, not {cap!r}")
        return lambda logits: softcap_(logits, cap)
    if cap is not None:
        raise ValueError(f"config.json: logit_softcap has no effect with logit_transform {kind!r}; drop one")
    return sqrt_positive_ if kind == "sqrt_positive" else lambda logits: logits


class LogitShapingProcessor(LogitsProcessor):
    """Upstream's logits processor with the configured transform of the logits.

    `adapt`, if given, maps the hidden states [rows, hidden_size] that are to become logits, and no others: those of
    all other tokens are gone by then, and what a draft model is handed stays as it was.

    In every release `_get_logits` is where sampled logits, prompt logprobs and scores all come from. It returns them
    gathered over the tensor parallel ranks, cut to the vocabulary and in float32, possibly in a CUDA graph's buffer:
    hence the transform in place.
    """

    def __init__(self, config: PretrainedConfig, adapt: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        super().__init__(config)
        self.transform = logit_transform(config)
        self.adapt = adapt or (lambda hidden_states: hidden_states)

    def _get_logits(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return self.transform(super()._get_logits(self.adapt(hidden_states), *args, **kwargs))
