"""Transforms of the logits, chosen in a checkpoint's config.json, and the logits processor that applies them.

    "logit_transform": "softcap",
    "logit_softcap": 30.0

`logit_transform` is "none" (the default), "softcap" or "sqrt_positive". On a GPU, one kernel reads the head's output in
its own dtype and writes float32: upstream's cast, which has to be done anyway, and the transform in one pass.
"""

import functools
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from sglang.srt.configs.config_keys import logit_problems, refuse
from sglang.srt.layers.logits_processor import LogitsProcessor
from transformers import PretrainedConfig


def shape_torch(logits: torch.Tensor, out: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Write `cap * tanh(logits / cap)` (Gemma 2's soft cap), or the root of the positive part where `cap` is None.

    - `logits`: [rows, vocabulary], of any dtype and strides; may be `out` itself.
    - `out`: [rows, vocabulary], float32; it is returned.
    """
    out.copy_(logits)
    return out.clamp_(min=0).sqrt_() if cap is None else out.div_(cap).tanh_().mul_(cap)


@triton.jit
def _shape_kernel(
    logits, out, columns, row_stride, column_stride, out_stride, cap, SOFTCAP: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)  # rows times vocabulary may be more than 32 bits count
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = column < columns
    x = tl.load(logits + row * row_stride + column * column_stride, mask=inside).to(tl.float32)
    if SOFTCAP:
        small = tl.exp(-2 * tl.abs(x / cap))  # at most 1: it cannot overflow
        y = cap * (1 - small) / (1 + small)
        y = tl.where(x < 0, -y, y)
    else:
        y = tl.sqrt(tl.where(x < 0, 0.0, x))
    tl.store(out + row * out_stride + column, y, mask=inside)


def shape_triton(logits: torch.Tensor, out: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Do what `shape_torch` does in one pass; `out` has its rows' values side by side."""
    rows, columns = logits.shape
    block = 2048
    _shape_kernel[(rows, triton.cdiv(columns, block))](
        logits, out, columns, *logits.stride(), out.stride(0), cap or 0.0, SOFTCAP=cap is not None, BLOCK=block
    )
    return out


def shape(logits: torch.Tensor, out: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Do what `shape_torch` does, in the way that suits the device."""
    return (shape_triton if logits.is_cuda else shape_torch)(logits, out, cap)


def logit_transform(config: PretrainedConfig) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """Read the transform from a checkpoint's configuration: `shape` but for its last parameter, or None.

    Raises ValueError, naming the key of config.json, on a value that is missing, out of range or without effect.
    """
    kind = getattr(config, "logit_transform", "none")
    cap = getattr(config, "logit_softcap", None)
    of_upstream = getattr(config, "final_logit_softcapping", None)
    refuse(logit_problems({"logit_transform": kind, "logit_softcap": cap, "final_logit_softcapping": of_upstream}))
    return None if kind == "none" else functools.partial(shape, cap=cap)


class LogitShapingProcessor(LogitsProcessor):
    """Upstream's logits processor with the configured transform of the logits.

    `adapt`, if given, maps the hidden states [rows, hidden_size] that are to become logits, and no others: those of
    all other tokens are gone by then, and what a draft model is handed stays as it was.

    In every release `_get_logits` is where sampled logits, prompt logprobs and scores all come from. It gathers them
    over the tensor parallel ranks, cuts them to the vocabulary and makes them float32, possibly in a CUDA graph's
    buffer: by `_copy_logits_to_buffer`, or before 0.5.9 by itself.
    """

    def __init__(self, config: PretrainedConfig, adapt: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        super().__init__(config)
        self.transform = logit_transform(config)
        self.adapt = adapt or (lambda hidden_states: hidden_states)

    def _get_logits(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        logits = super()._get_logits(self.adapt(hidden_states), *args, **kwargs)
        if self.transform is None or hasattr(LogitsProcessor, "_copy_logits_to_buffer"):
            return logits
        return self.transform(logits, logits)

    def _copy_logits_to_buffer(self, logits: torch.Tensor, logits_metadata, *args, **kwargs) -> torch.Tensor:
        if self.transform is None:
            return super()._copy_logits_to_buffer(logits, logits_metadata, *args, **kwargs)
        use_buffer = args[0] if args else kwargs.get("use_buffer", True)  # which releases before 0.5.16 do not give
        buffer = logits_metadata.next_token_logits_buffer if use_buffer else None
        logits = logits[:, : self.vocab_size]
        if buffer is None or buffer.shape != logits.shape:
            buffer = logits.new_empty(logits.shape, dtype=torch.float32)
        return self.transform(logits, buffer)
