"""Copies between slots of the linear-attention state pool, in plain PyTorch.

The pool keeps, per layer and slot, a convolution state and a recurrent state. The radix cache (``extra_buffer``)
snapshots them, and speculative decoding commits the state after the last accepted draft.
"""

from __future__ import annotations

import torch


def track_mamba_states_if_needed(
    conv_states: torch.Tensor,
    ssm_states: torch.Tensor,
    cache_indices: torch.Tensor,
    mamba_track_mask: torch.Tensor,
    mamba_track_indices: torch.Tensor,
    batch_size: int,
    check_freed_slots: bool = False,
) -> None:
    """Copy both states of the masked requests from their working slot to their snapshot slot.

    Source: upstream function of the same name.

    :param conv_states: [slots, ...].
    :param ssm_states: [slots, ...].
    :param cache_indices: [>= batch_size] working slots; padding (negative) is left out.
    :param mamba_track_mask: [>= batch_size] bool.
    :param mamba_track_indices: [>= batch_size] snapshot slots; negative ones are left out.
    :param check_freed_slots: upstream's name for leaving out the negative ones, which is always done here.
    """
    source, target = cache_indices[:batch_size].long(), mamba_track_indices[:batch_size].long()
    chosen = mamba_track_mask[:batch_size] & (source >= 0) & (target >= 0)
    for states in (conv_states, ssm_states):
        states[target[chosen]] = states[source[chosen]]


def track_mamba_states_all_layers(
    conv_states_pool: torch.Tensor, ssm_states_pool: torch.Tensor, *args, **kwargs
) -> None:
    """Call :func:`track_mamba_states_if_needed` for each layer of ``[layers, slots, ...]`` pools."""
    for conv_states, ssm_states in zip(conv_states_pool, ssm_states_pool, strict=True):
        track_mamba_states_if_needed(conv_states, ssm_states, *args, **kwargs)


def scatter_with_mask(
    dst: torch.Tensor,
    src: torch.Tensor,
    dst_indices_raw: torch.Tensor,
    step_indices_raw: torch.Tensor,
    src_indices_raw: torch.Tensor | None = None,
) -> None:
    """Commit, in every layer, the state each request had after one of its speculative steps.

    ``dst[:, dst_indices[i]] = src[:, src_indices[i], step_indices[i]]`` for each request i whose indices are all
    non-negative. Source: upstream ``fused_mamba_state_scatter_with_mask``, ``fused_conv_window_scatter_with_mask``.

    :param dst: [layers, slots, ...].
    :param src: [layers, rows, steps, ...].
    :param dst_indices_raw: [>= N].
    :param step_indices_raw: [N].
    :param src_indices_raw: [>= N]; None means row i for request i.
    """
    count = step_indices_raw.shape[0]
    step, target = step_indices_raw.long(), dst_indices_raw[:count].long()
    source = torch.arange(count) if src_indices_raw is None else src_indices_raw[:count].long()
    chosen = (step >= 0) & (target >= 0) & (source >= 0)
    dst[:, target[chosen]] = src[:, source[chosen], step[chosen]].to(dst.dtype)
