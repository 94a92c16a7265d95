"""Gated DeltaNet (Yang, Kautz, Hatamizadeh 2024, arXiv:2412.06464) in plain PyTorch.

Per head, with key and query rows ``k_t, q_t`` [K], value ``v_t`` [V], log decay ``g_t <= 0`` and write strength
``beta_t``, the state ``S`` [K, V] follows

    S_t = exp(g_t) * S_{t-1} + k_t (beta_t * (v_t - k_t^T exp(g_t) * S_{t-1}))^T
    o_t = S_t^T q_t

Everything is computed in float32 and rounded to the caller's dtype once, at the end. Engine states are stored
transposed, ``[slots, HV, V, K]``; a negative slot index marks padding: its output is zero and no state is written.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

CHUNK_SIZE = 64
"""Tokens between the states returned by :func:`chunk_gated_delta_rule_cpu` (upstream's ``FLA_CHUNK_SIZE``)."""


def fused_gdn_gating_cpu(
    A_log: torch.Tensor, a: torch.Tensor, b: torch.Tensor, dt_bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the decay and the write strength of each token and head.

    ``g = -exp(A_log) * softplus(a + dt_bias)`` and ``beta = sigmoid(b)``; source: upstream ``fused_gdn_gating``.

    :param A_log: [HV].
    :param a: [T, HV].
    :param b: [T, HV].
    :param dt_bias: [HV].
    :returns: ``g`` [1, T, HV] in float32, and ``beta`` [1, T, HV] rounded to b's dtype, as upstream rounds it.
    """
    g, beta = _gating(A_log, a, b, dt_bias)
    return g.unsqueeze(0), beta.to(b.dtype).unsqueeze(0)


def chunk_gated_delta_rule_cpu(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor,
    cu_seqlens: torch.Tensor,
    head_first: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    initial_state_indices: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Run whole sequences from their initial states (prefill).

    Source: upstream ``chunk_gated_delta_rule``; the chunked form is section 3.3 of the paper.

    :param q: [1, T, H, K]; sequences are laid out one after another along T.
    :param k: [1, T, H, K].
    :param v: [1, T, HV, V], HV a multiple of H; value head i uses query and key head ``i // (HV // H)``.
    :param g: [1, T, HV].
    :param beta: [1, T, HV].
    :param initial_state: with ``initial_state_indices`` [slots, HV, V, K], updated in place; without it one state a
        sequence [N, HV, V, K], left alone.
    :param cu_seqlens: [N + 1] integers, where each sequence starts; sequences may be empty.
    :param initial_state_indices: [N] integers, the slot of each sequence, negative for padding.
    :returns: output [1, T, HV, V] in v's dtype; the final states [N, HV, V, K] if there are no indices, else None;
        and the state before each chunk of ``CHUNK_SIZE`` tokens, [1, sum(ceil(len / CHUNK_SIZE)), HV, V, K] float32.
    :raises NotImplementedError: if ``head_first``.
    """
    if head_first:
        raise NotImplementedError("sgl_kernel.chunk_gated_delta_rule_cpu: head_first=True has no CPU implementation")
    in_place = initial_state_indices is not None
    if in_place:
        states, slots = initial_state, initial_state_indices.tolist()
    else:
        states, slots = initial_state.clone(), range(initial_state.shape[0])
    out = torch.zeros_like(v)
    q, k, v, g, beta = _prepare(q[0], k[0], v[0], g[0], beta[0], use_qk_l2norm_in_kernel)

    starts = cu_seqlens.tolist()
    chunk_states = [v.new_empty(0, *states.shape[1:])]
    for slot, start, end in zip(slots, starts, starts[1:], strict=False):
        if slot < 0:
            chunk_states.append(v.new_zeros(-(-(end - start) // CHUNK_SIZE), *states.shape[1:]))
        elif end > start:
            tokens = slice(start, end)
            state = states[slot].float().transpose(-1, -2)
            out[0, tokens], state, befores = _run_chunks(
                q[tokens], k[tokens], v[tokens], g[tokens], beta[tokens], state
            )
            states[slot] = state.transpose(-1, -2).to(states.dtype)
            chunk_states.append(befores.transpose(-1, -2))
    return out, None if in_place else states, torch.cat(chunk_states).unsqueeze(0)


def fused_sigmoid_gating_delta_rule_update_cpu(
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    initial_state_source: torch.Tensor,
    initial_state_indices: torch.Tensor,
    cu_seqlens: torch.Tensor | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    softplus_beta: float = 1.0,
    softplus_threshold: float = 20.0,
    is_kda: bool = False,
    disable_state_update: bool = False,
    intermediate_states_buffer: torch.Tensor | None = None,
    intermediate_state_indices: torch.Tensor | None = None,
    cache_steps: int | None = None,
    retrieve_parent_token: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gate and step a few tokens of each sequence (decode and speculative verify).

    Source: upstream ``fused_sigmoid_gating_delta_rule_update``: :func:`fused_gdn_gating_cpu` without rounding beta,
    then :func:`fused_recurrent_gated_delta_rule_update_cpu`, which documents the other parameters.

    :param a: [T, HV] or [1, T, HV].
    :param b: [T, HV] or [1, T, HV].
    :raises NotImplementedError: for Kimi's per-channel decay, another softplus, or a draft tree.
    """
    op = "sgl_kernel.fused_sigmoid_gating_delta_rule_update_cpu"
    if is_kda:
        raise NotImplementedError(f"{op}: is_kda=True has no CPU implementation")
    if (softplus_beta, softplus_threshold) != (1.0, 20.0):
        raise NotImplementedError(f"{op}: {softplus_beta=}, {softplus_threshold=} have no CPU implementation")
    heads = A_log.shape[0]
    g, beta = _gating(A_log, a.reshape(-1, heads), b.reshape(-1, heads), dt_bias)
    return fused_recurrent_gated_delta_rule_update_cpu(
        q,
        k,
        v,
        g.unsqueeze(0),
        beta.unsqueeze(0),
        initial_state_source,
        initial_state_indices,
        cu_seqlens=cu_seqlens,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        disable_state_update=disable_state_update,
        intermediate_states_buffer=intermediate_states_buffer,
        intermediate_state_indices=intermediate_state_indices,
        cache_steps=cache_steps,
        retrieve_parent_token=retrieve_parent_token,
    )


def fused_recurrent_gated_delta_rule_update_cpu(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state_source: torch.Tensor,
    initial_state_indices: torch.Tensor,
    cu_seqlens: torch.Tensor | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    disable_state_update: bool = False,
    intermediate_states_buffer: torch.Tensor | None = None,
    intermediate_state_indices: torch.Tensor | None = None,
    cache_steps: int | None = None,
    retrieve_parent_token: torch.Tensor | None = None,
) -> torch.Tensor:
    """Step the same number of tokens of each sequence, all sequences at once.

    Source: upstream ``fused_recurrent_gated_delta_rule_update``.

    :param q: [1, N * steps, H, K]; k likewise, v [1, N * steps, HV, V], g and beta [1, N * steps, HV].
    :param initial_state_source: [slots, HV, V, K], updated in place unless ``disable_state_update``.
    :param initial_state_indices: [>= N] integers, the slot of each sequence, negative for padding.
    :param cu_seqlens: [N + 1] integers; None means one token for each of the N indices.
    :param intermediate_states_buffer: [rows, >= steps, HV, V, K]; receives the state after every step.
    :param intermediate_state_indices: [>= N] integers, the row of that buffer for each sequence.
    :param cache_steps: upstream's size hint; the buffer's own shape says it here.
    :returns: output [1, N * steps, HV, V] in v's dtype.
    :raises NotImplementedError: if sequences differ in length, or the drafts form a tree
        (``retrieve_parent_token``, that is ``speculative_eagle_topk > 1``).
    """
    op = "sgl_kernel.fused_recurrent_gated_delta_rule_update_cpu"
    if retrieve_parent_token is not None:
        raise NotImplementedError(f"{op}: retrieve_parent_token (draft trees, topk > 1) has no CPU implementation")
    heads, width = v.shape[2:]
    count = initial_state_indices.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    steps = v.shape[1] // max(count, 1)
    if count * steps != v.shape[1]:
        raise NotImplementedError(f"{op}: {v.shape[1]} tokens in {count} sequences of unequal length")

    q, k, v32, g, beta = (
        t.reshape(count, steps, *t.shape[1:])
        for t in _prepare(q[0], k[0], v[0], g.reshape(-1, heads), beta.reshape(-1, heads), use_qk_l2norm_in_kernel)
    )
    slots = initial_state_indices[:count].long()
    real = slots >= 0
    # [N, HV, V, K]: the layout of the pool, so key rows broadcast along the last dimension.
    state = initial_state_source[slots.clamp(min=0)].float()
    out = v32.new_empty(count, steps, heads, width)
    for t in range(steps):
        state = state * g[:, t].exp()[..., None, None]
        error = (v32[:, t] - (state * k[:, t, :, None]).sum(-1)) * beta[:, t, :, None]
        state = state + error.unsqueeze(-1) * k[:, t, :, None]
        out[:, t] = (state * q[:, t, :, None]).sum(-1)
        if intermediate_states_buffer is not None:
            rows = intermediate_state_indices[:count].long()[real]
            intermediate_states_buffer[rows, t] = state[real].to(intermediate_states_buffer.dtype)
    if not disable_state_update:
        initial_state_source[slots[real]] = state[real].to(initial_state_source.dtype)
    out[~real] = 0
    return out.reshape(1, -1, heads, width).to(v.dtype)


def _gating(A_log, a, b, dt_bias):
    g = -A_log.float().exp() * F.softplus(a.float() + dt_bias.float())
    return g, b.float().sigmoid()


def _prepare(q, k, v, g, beta, normalise):
    """Return the operands in float32, keys and queries normalised, scaled and repeated for each value head."""
    q, k = q.float(), k.float()
    if normalise:
        q, k = (t * torch.rsqrt(t.square().sum(-1, keepdim=True) + 1e-6) for t in (q, k))
    repeat = v.shape[-2] // q.shape[-2]
    if repeat > 1:
        q, k = q.repeat_interleave(repeat, -2), k.repeat_interleave(repeat, -2)
    return q * q.shape[-1] ** -0.5, k, v.float(), g.float(), beta.float()


def _run_chunks(q, k, v, g, beta, state):
    """Run one sequence chunk by chunk.

    With G the running sum of g in a chunk and S its first state, the writes ``u_t = beta_t (v_t - exp(g_t) S_{t-1}^T
    k_t)`` solve a unit lower triangular system: ``u_i + sum_{j<i} beta_i exp(G_i - G_j) (k_i.k_j) u_j = beta_i (v_i -
    exp(G_i) S^T k_i)``. The rest is matrix products.

    :param state: [H, K, V] float32.
    :returns: output [T, H, V], the final state, and the state before each chunk [chunks, H, K, V].
    """
    outputs, befores = [], []
    for start in range(0, q.shape[0], CHUNK_SIZE):
        qc, kc, vc, gc, bc = (t[start : start + CHUNK_SIZE].transpose(0, 1) for t in (q, k, v, g, beta))
        total = gc.cumsum(-1)
        decay = (total.unsqueeze(-1) - total.unsqueeze(-2)).exp().tril()
        kb = kc * bc.unsqueeze(-1)
        from_start = total.exp().unsqueeze(-1)
        rhs = vc * bc.unsqueeze(-1) - (kb * from_start) @ state
        # unitriangular: of the left side only what is below the diagonal is read.
        left = (kb @ kc.transpose(-1, -2)) * decay
        writes = torch.linalg.solve_triangular(left, rhs, upper=False, unitriangular=True)
        outputs.append((qc * from_start) @ state + ((qc @ kc.transpose(-1, -2)) * decay) @ writes)
        befores.append(state)
        to_end = (total[:, -1:] - total).exp().unsqueeze(-1)
        state = state * total[:, -1, None, None].exp() + (kc * to_end).transpose(-1, -2) @ writes
    return torch.cat(outputs, 1).transpose(0, 1), state, torch.stack(befores)
