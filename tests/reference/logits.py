"""Transforms of logits, in plain torch."""

from __future__ import annotations

import torch


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
