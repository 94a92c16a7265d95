"""Products with weights by oneDNN, which torch has beside MKL and takes for float32 only when asked.

MKL is slower on processors that are not Intel's: with eight rows by two thirds and more on an AMD EPYC. Weights stay as
they are, so that an update of them needs nothing here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

WORTH = 1 << 21
"""From how many multiplications on oneDNN is faster: what it prepares for a call takes some 10 microseconds."""


def linear_by_onednn(linear: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Let ``torch.nn.functional.linear`` take oneDNN where that is worth it.

    :param linear: torch's own, which does all else.
    """

    @functools.wraps(linear)
    def call(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if _is_worth(input, weight):
            return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
        return linear(input, weight, bias)

    return call


def matmul_by_onednn(matmul: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Let ``torch.matmul`` by a transposed weight, as logits are computed, take oneDNN where that is worth it.

    :param matmul: torch's own, which does all else.
    """

    @functools.wraps(matmul)
    def call(input: torch.Tensor, other: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if not kwargs and other.dim() == 2 and _is_worth(input, other.t()):
            return torch.ops.mkldnn._linear_pointwise(input, other.t(), None, "none", [], "")
        return matmul(input, other, **kwargs)

    return call


def _is_worth(input: torch.Tensor, weight: torch.Tensor) -> bool:
    """Say whether oneDNN computes ``input @ weight.T`` and is faster.

    :param input: [..., in].
    :param weight: [out, in], one row after another.
    """
    return (
        torch.backends.mkldnn.is_available()
        and type(input) is torch.Tensor
        and input.dtype == weight.dtype == torch.float32
        and input.device.type == weight.device.type == "cpu"
        and weight.dim() == 2
        and input.dim() > 1
        and input.shape[-1] == weight.shape[1]
        and input.numel() * weight.shape[0] >= WORTH
        and weight.is_contiguous()
        and not (torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad))
    )
