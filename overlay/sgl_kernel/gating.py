"""Elementwise gates of Qwen3-Next in plain PyTorch; float32 inside, the caller's dtype outside."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def fused_rmsnorm_gated_cpu(x: torch.Tensor, weight: torch.Tensor, z: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise, scale, and gate: ``x / rms(x) * weight * silu(z)``.

    Source: upstream ``FusedRMSNormGated`` and, norm before gate, ``layernorm_gated.RMSNorm``.

    :param x: [..., dim].
    :param weight: [dim].
    :param z: [..., dim].
    :param eps: added to the mean square.
    :returns: [..., dim] in x's dtype.
    """
    x32 = x.float()
    normal = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return (normal * weight.float() * F.silu(z.float())).to(x.dtype)


def rmsnorm_gated_forward(self, x: torch.Tensor, z: torch.Tensor | None = None) -> torch.Tensor:
    """Stand in for ``layernorm_gated.RMSNorm.forward`` where it has no CPU branch.

    :raises NotImplementedError: for the variants Qwen3-Next does not use.
    """
    if z is None or not self.norm_before_gate or self.group_size is not None:
        raise NotImplementedError("layernorm_gated.RMSNorm: only norm before gate, one group, on a CPU")
    return fused_rmsnorm_gated_cpu(x, self.weight, z, self.eps)


def fused_rmsnorm_gated_forward(
    self,
    x: torch.Tensor,
    g: torch.Tensor,
    residual: torch.Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> torch.Tensor:
    """Stand in for ``FusedRMSNormGated.forward`` where it has no CPU branch.

    :raises NotImplementedError: for the variants Qwen3-Next does not use.
    """
    if residual is not None or prenorm or self.activation not in ("silu", "swish"):
        raise NotImplementedError("FusedRMSNormGated: only the SiLU gate, without residual, on a CPU")
    return fused_rmsnorm_gated_cpu(x, self.weight, g, self.eps)


def fused_gate_sigmoid_mul(
    hidden_states: torch.Tensor, gate_weight: torch.Tensor, shared_output: torch.Tensor
) -> torch.Tensor:
    """Gate the shared expert: ``sigmoid(hidden . gate) * shared``; source: upstream function of the same name.

    :param hidden_states: [T, dim].
    :param gate_weight: [dim].
    :param shared_output: [T, dim].
    :returns: [T, dim] in shared_output's dtype.
    """
    gate = (hidden_states.float() @ gate_weight.float()).sigmoid().unsqueeze(-1)
    return (gate * shared_output.float()).to(shared_output.dtype)


def fused_gate_sigmoid_mul_add(
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor,
    shared_output: torch.Tensor,
    final_hidden_states: torch.Tensor,
) -> None:
    """Add the gated shared expert to ``final_hidden_states`` [T, dim] in place.

    Source: upstream function of the same name; the other parameters are :func:`fused_gate_sigmoid_mul`'s.
    """
    gated = fused_gate_sigmoid_mul(hidden_states.float(), gate_weight, shared_output.float())
    final_hidden_states.copy_(final_hidden_states.float() + gated)
