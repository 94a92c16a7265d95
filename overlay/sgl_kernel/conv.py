"""Causal depthwise 1-d convolution with a state, in plain PyTorch.

``y[d, t] = bias[d] + sum_j weight[d, j] * x[d, t - (W - 1) + j]``, where the W - 1 values before a sequence come from
its state (or are zero), optionally followed by SiLU. Source: upstream ``causal_conv1d_fn`` and
``causal_conv1d_update``. States are ``[slots, dim, W - 1]``, oldest value first, and hold the last W - 1 inputs.
A slot index of -1 marks padding: its output is zero (``fn``) or unspecified (``update``), and no state is written.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def causal_conv1d_fn_cpu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | bool | None = None,
    *,
    conv_states: torch.Tensor,
    query_start_loc: torch.Tensor,
    cache_indices: torch.Tensor,
    has_initial_state: torch.Tensor | None = None,
    seq_lens_cpu: list[int] | None = None,
) -> torch.Tensor:
    """Convolve whole sequences laid out one after another (prefill).

    :param x: [dim, T], any strides.
    :param weight: [dim, W].
    :param bias: [dim] or None.
    :param activation: "silu" or "swish" (or True), None (or False) for none.
    :param conv_states: [slots, dim, W - 1], updated in place; must hold W - 1 values a channel.
    :param query_start_loc: [N + 1] integers, where each sequence starts; sequences may be empty.
    :param cache_indices: [N] integers, the slot of each sequence, -1 for padding.
    :param has_initial_state: [N] bool; False starts a sequence from zeros. None means all False.
    :param seq_lens_cpu: the lengths again, which upstream passes to avoid a device copy; not needed here.
    :returns: [dim, T] in x's dtype.
    :raises ValueError: for another activation.
    """
    out = torch.zeros_like(x)
    starts = query_start_loc.tolist()
    slots = cache_indices.tolist()
    resumed = [False] * len(slots) if has_initial_state is None else has_initial_state.tolist()
    for slot, resume, start, end in zip(slots, resumed, starts, starts[1:], strict=False):
        if slot >= 0 and end > start:
            state = conv_states[slot]
            past = state if resume else torch.zeros_like(state)
            window = torch.cat([past.to(x.dtype), x[:, start:end]], dim=-1)
            out[:, start:end] = _convolve(window, weight, bias, activation)
            state.copy_(window[:, -state.shape[-1] :])
    return out


def causal_conv1d_update_cpu(
    x: torch.Tensor,
    conv_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | bool | None = None,
    *,
    conv_state_indices: torch.Tensor,
    intermediate_conv_window: torch.Tensor | None = None,
    intermediate_state_indices: torch.Tensor | None = None,
    retrieve_next_token: torch.Tensor | None = None,
    retrieve_next_sibling: torch.Tensor | None = None,
    retrieve_parent_token: torch.Tensor | None = None,
) -> torch.Tensor:
    """Convolve the next token or tokens of each sequence (decode and speculative verify).

    :param x: [N, dim] or [N, dim, steps], any strides.
    :param conv_states: [slots, dim, W - 1]; updated in place, unless there is an intermediate window.
    :param weight: [dim, W].
    :param bias: [dim] or None.
    :param activation: "silu" or "swish" (or True), None (or False) for none.
    :param conv_state_indices: [N] integers, the slot of each sequence, -1 for padding.
    :param intermediate_conv_window: [rows, >= steps, dim, W - 1]; receives the state after every step.
    :param intermediate_state_indices: [N] integers, the row of that buffer for each sequence.
    :param retrieve_next_token: upstream's links between drafts; a chain needs none of them.
    :returns: x's shape, dtype and strides (the caller views its transpose).
    :raises NotImplementedError: if the drafts form a tree (``retrieve_parent_token``, that is topk > 1).
    :raises ValueError: for another activation.
    """
    if retrieve_parent_token is not None:
        raise NotImplementedError(
            "sgl_kernel.causal_conv1d_update_cpu: retrieve_parent_token (draft trees, topk > 1) "
            "has no CPU implementation"
        )
    tokens = x.unsqueeze(-1) if x.dim() == 2 else x
    slots = conv_state_indices.long()
    real = slots >= 0
    past = conv_states[slots.clamp(min=0)]
    window = torch.cat([past.to(x.dtype), tokens], dim=-1)
    out = torch.empty_like(x)
    out.copy_(_convolve(window, weight, bias, activation).view(x.shape))
    kept = past.shape[-1]
    if intermediate_conv_window is None:
        conv_states[slots[real]] = window[real][..., -kept:].to(conv_states.dtype)
    else:
        # [N, dim, steps, W - 1]: the state after step t is the window that ends with it.
        after = window[real].unfold(-1, kept, 1)[:, :, 1:].transpose(1, 2)
        rows = intermediate_state_indices.long()[real]
        intermediate_conv_window[rows, : tokens.shape[-1]] = after.to(intermediate_conv_window.dtype)
    return out


def _convolve(window, weight, bias, activation):
    """Return the convolution over ``window`` [..., dim, W - 1 + T], as [..., dim, T] in float32."""
    if activation not in (None, False, True, "silu", "swish"):
        raise ValueError(f"sgl_kernel causal_conv1d: activation={activation!r}, expected None, 'silu' or 'swish'")
    bias = None if bias is None else bias.float()
    y = F.conv1d(window.float(), weight.float().unsqueeze(1), bias, groups=weight.shape[0])
    return F.silu(y) if activation else y
