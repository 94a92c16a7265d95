"""The CPU reference kernels against formulas written out independently, in float64 and token by token.

These need torch and the ``sgl_kernel`` package, not sglang.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import sgl_kernel
import torch
from sgl_kernel import gated_delta, gating, linear, native_attention, native_draft, speculative, state_pool
from sgl_kernel.conv import causal_conv1d_fn_cpu, causal_conv1d_update_cpu
from sgl_kernel.gated_delta import CHUNK_SIZE

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: {"rtol": 2e-4, "atol": 2e-5}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected.double(), **TOLERANCE[dtype])


# Gated DeltaNet


class GatedDeltaCase:
    """Random operands; values are rounded to dtype first, so the float64 truth starts from the same numbers."""

    def __init__(
        self,
        rng: torch.Generator,
        tokens: int,
        dtype: torch.dtype,
        heads: int = 2,
        value_heads: int = 4,
        key_dim: int = 16,
        value_dim: int = 24,
        slots: int = 9,
    ) -> None:
        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=rng).to(dtype)

        self.dtype, self.repeat = dtype, value_heads // heads
        self.q, self.k = normal(1, tokens, heads, key_dim), normal(1, tokens, heads, key_dim)
        self.v = normal(1, tokens, value_heads, value_dim)
        self.a, self.b = normal(tokens, value_heads), normal(tokens, value_heads)
        self.A_log, self.dt_bias = torch.randn(value_heads, generator=rng) - 1, torch.randn(value_heads, generator=rng)
        self.pool = torch.randn(slots, value_heads, value_dim, key_dim, generator=rng)

    def gates(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return g and beta as the definition has them, in float64."""
        g = -torch.exp(self.A_log.double()) * torch.log1p(torch.exp(self.a.double() + self.dt_bias.double()))
        return g, 1 / (1 + torch.exp(-self.b.double()))

    def truth(
        self, start: int, end: int, state: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, normalise: bool = True
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Walk tokens start..end-1 one by one from state [HV, V, K]; return outputs and the state after each."""
        state, outputs, states = state.double(), [], []
        for t in range(start, end):
            out, after = [], []
            for head in range(self.v.shape[2]):
                q, k = self.q[0, t, head // self.repeat].double(), self.k[0, t, head // self.repeat].double()
                if normalise:
                    q, k = q / torch.sqrt(q @ q + 1e-6), k / torch.sqrt(k @ k + 1e-6)
                s = state[head] * torch.exp(g[t, head].double())
                wrong = self.v[0, t, head].double() - s @ k
                s = s + beta[t, head].double() * torch.outer(wrong, k)
                out.append(s @ q / math.sqrt(q.shape[0]))
                after.append(s)
            state = torch.stack(after)
            outputs.append(torch.stack(out))
            states.append(state)
        return outputs, states


@pytest.mark.parametrize("dtype", DTYPES)
def test_gating_is_the_definition(rng: torch.Generator, dtype: torch.dtype) -> None:
    case = GatedDeltaCase(rng, 5, dtype)
    g, beta = sgl_kernel.gated_delta.fused_gdn_gating_cpu(case.A_log, case.a, case.b, case.dt_bias)
    expected_g, expected_beta = case.gates()
    assert g.shape == beta.shape == (1, 5, 4)
    close(g[0], expected_g, torch.float32)
    close(beta[0], expected_beta, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    "lengths",
    [[1], [CHUNK_SIZE - 1], [CHUNK_SIZE], [CHUNK_SIZE + 1], [3, 0, 2 * CHUNK_SIZE + 5, 1], [0, 0, 4], [0]],
    ids=str,
)
def test_prefill_equals_the_recurrence(
    rng: torch.Generator, lengths: list[int], normalise: bool, dtype: torch.dtype
) -> None:
    case = GatedDeltaCase(rng, sum(lengths), dtype)
    if not normalise:
        case.k = (case.k.float() / 4).to(dtype)  # keep the recurrence stable
    g, beta = case.gates()
    starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    slots = [6, 2, 0, 8][: len(lengths)]
    pool = case.pool.clone()
    out, final, chunks = gated_delta.chunk_gated_delta_rule_cpu(
        case.q, case.k, case.v, g.float()[None], beta.float()[None], pool, torch.tensor(starts, dtype=torch.int32),
        use_qk_l2norm_in_kernel=normalise, initial_state_indices=torch.tensor(slots, dtype=torch.int32),
    )  # fmt: skip
    assert final is None
    assert out.shape == case.v.shape
    expected_chunks = []
    for slot, start, end in zip(slots, starts, starts[1:], strict=False):
        outputs, states = case.truth(start, end, case.pool[slot], g, beta, normalise)
        if end > start:
            close(out[0, start:end], torch.stack(outputs), dtype)
            close(pool[slot], states[-1], torch.float32)
            expected_chunks += [case.pool[slot].double(), *states][: end - start : CHUNK_SIZE]
        else:
            assert torch.equal(pool[slot], case.pool[slot])
    assert chunks.shape == (1, len(expected_chunks), *case.pool.shape[1:])
    if expected_chunks:
        close(chunks[0], torch.stack(expected_chunks), torch.float32)
    untouched = [slot for slot in range(len(pool)) if slot not in slots]
    assert torch.equal(pool[untouched], case.pool[untouched])


def test_prefill_without_indices_returns_the_states_and_leaves_the_initial_ones(rng: torch.Generator) -> None:
    case = GatedDeltaCase(rng, 70, torch.float32)
    g, beta = case.gates()
    initial = case.pool[:2].clone()
    arguments = (case.q, case.k, case.v, g.float()[None], beta.float()[None])
    starts = torch.tensor([0, 66, 70])
    out, final, _ = gated_delta.chunk_gated_delta_rule_cpu(*arguments, initial, starts, use_qk_l2norm_in_kernel=True)
    assert torch.equal(initial, case.pool[:2])
    for i, (start, end) in enumerate([(0, 66), (66, 70)]):
        outputs, states = case.truth(start, end, case.pool[i], g, beta)
        close(out[0, start:end], torch.stack(outputs), torch.float32)
        close(final[i], states[-1], torch.float32)


def test_prefill_of_padding_is_zero_and_touches_no_state(rng: torch.Generator) -> None:
    case = GatedDeltaCase(rng, 70, torch.float32)
    g, beta = case.gates()
    pool = case.pool.clone()
    out, _, chunks = gated_delta.chunk_gated_delta_rule_cpu(
        case.q, case.k, case.v, g.float()[None], beta.float()[None], pool, torch.tensor([0, 66, 70]),
        use_qk_l2norm_in_kernel=True, initial_state_indices=torch.tensor([-1, 3]),
    )  # fmt: skip
    assert not out[0, :66].any()
    close(out[0, 66:], torch.stack(case.truth(66, 70, case.pool[3], g, beta)[0]), torch.float32)
    assert torch.equal(chunks[0, 2], case.pool[3])  # after the two chunks of padding
    others = [slot for slot in range(9) if slot != 3]
    assert torch.equal(pool[others], case.pool[others])


def test_prefill_survives_extreme_decay(rng: torch.Generator) -> None:
    case = GatedDeltaCase(rng, 100, torch.float32)
    g = torch.full((100, 4), -80.0)  # exp of a running sum of these underflows, its inverse overflows
    beta = torch.rand(100, 4, generator=rng)
    pool = case.pool.clone()
    out, _, _ = gated_delta.chunk_gated_delta_rule_cpu(
        case.q, case.k, case.v, g[None], beta[None], pool, torch.tensor([0, 100]),
        use_qk_l2norm_in_kernel=True, initial_state_indices=torch.tensor([1]),
    )  # fmt: skip
    outputs, states = case.truth(0, 100, case.pool[1], g, beta)
    close(out[0], torch.stack(outputs), torch.float32)
    close(pool[1], states[-1], torch.float32)


def test_prefill_in_pieces_equals_prefill_at_once(rng: torch.Generator) -> None:
    case = GatedDeltaCase(rng, 200, torch.float32)
    g, beta = (t.float()[None] for t in case.gates())
    once, pieces = case.pool.clone(), case.pool.clone()
    outs = []
    for pool, cuts in ((once, [0, 200]), (pieces, [0, 64, 97, 200])):
        parts = [
            gated_delta.chunk_gated_delta_rule_cpu(
                case.q[:, s:e], case.k[:, s:e], case.v[:, s:e], g[:, s:e], beta[:, s:e], pool, torch.tensor([0, e - s]),
                use_qk_l2norm_in_kernel=True, initial_state_indices=torch.tensor([5]),
            )[0]
            for s, e in itertools.pairwise(cuts)
        ]  # fmt: skip
        outs.append(torch.cat(parts, 1))
    close(outs[1], outs[0], torch.float32)
    close(pieces, once, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool_dtype", DTYPES)
def test_decode_equals_the_recurrence(rng: torch.Generator, dtype: torch.dtype, pool_dtype: torch.dtype) -> None:
    case = GatedDeltaCase(rng, 4, dtype)
    case.pool = case.pool.to(pool_dtype)
    g, beta = case.gates()
    pool = case.pool.clone()
    slots = [7, -1, 0, 3]
    out = torch.ops.sgl_kernel.fused_sigmoid_gating_delta_rule_update_cpu(
        A_log=case.A_log, dt_bias=case.dt_bias, q=case.q, k=case.k, v=case.v, a=case.a, b=case.b,
        initial_state_source=pool, initial_state_indices=torch.tensor(slots, dtype=torch.int32),
        cu_seqlens=torch.arange(5), use_qk_l2norm_in_kernel=True, softplus_beta=1.0, softplus_threshold=20.0,
    )  # fmt: skip
    assert out.shape == case.v.shape
    for t, slot in enumerate(slots):
        if slot < 0:
            assert not out[0, t].any()
            continue
        outputs, states = case.truth(t, t + 1, case.pool[slot], g, beta)
        close(out[0, t], outputs[0], dtype)
        close(pool[slot], states[0], pool_dtype)
    untouched = [1, 2, 4, 5, 6, 8]
    assert torch.equal(pool[untouched], case.pool[untouched])


@pytest.mark.parametrize("keep_state", [True, False])
def test_verify_stores_the_state_after_every_draft(rng: torch.Generator, keep_state: bool) -> None:
    steps, slots, rows = 3, [4, 1], [2, 0]
    case = GatedDeltaCase(rng, 2 * steps, torch.float32)
    g, beta = case.gates()
    pool, buffer = case.pool.clone(), torch.full((3, steps + 1, *case.pool.shape[1:]), 9.0)
    out = gated_delta.fused_sigmoid_gating_delta_rule_update_cpu(
        case.A_log, case.dt_bias, case.q, case.k, case.v, case.a, case.b, pool, torch.tensor([*slots, -1]),
        cu_seqlens=torch.tensor([0, steps, 2 * steps]), use_qk_l2norm_in_kernel=True, disable_state_update=keep_state,
        intermediate_states_buffer=buffer, intermediate_state_indices=torch.tensor([*rows, 1], dtype=torch.int32),
        cache_steps=steps,
    )  # fmt: skip
    expected_pool = case.pool.clone()
    for i, (slot, row) in enumerate(zip(slots, rows, strict=True)):
        outputs, states = case.truth(i * steps, (i + 1) * steps, case.pool[slot], g, beta)
        close(out[0, i * steps : (i + 1) * steps], torch.stack(outputs), torch.float32)
        close(buffer[row, :steps], torch.stack(states), torch.float32)
        if not keep_state:
            expected_pool[slot] = states[-1]
    close(pool, expected_pool, torch.float32)
    assert (buffer[1] == 9).all()
    assert (buffer[:, steps] == 9).all()


def test_verify_of_padding_stores_nothing(rng: torch.Generator) -> None:
    case = GatedDeltaCase(rng, 4, torch.float32)
    g, beta = (t.float()[None] for t in case.gates())
    pool, buffer = case.pool.clone(), torch.zeros(2, 2, *case.pool.shape[1:])
    gated_delta.fused_recurrent_gated_delta_rule_update_cpu(
        case.q, case.k, case.v, g, beta, pool, torch.tensor([-1, 5]), cu_seqlens=torch.tensor([0, 2, 4]),
        use_qk_l2norm_in_kernel=True, intermediate_states_buffer=buffer,
        intermediate_state_indices=torch.tensor([0, 1]),
    )  # fmt: skip
    assert not buffer[0].any()
    assert buffer[1].any()
    others = [slot for slot in range(9) if slot != 5]
    assert torch.equal(pool[others], case.pool[others])


# Convolution


def convolve(history: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, silu: bool) -> torch.Tensor:
    """Sum over taps, one output at a time: history [dim, W - 1 + T] float64 -> [dim, T]."""
    dim, width = weight.shape
    out = torch.empty(dim, history.shape[1] - width + 1, dtype=torch.float64)
    for d in range(dim):
        for t in range(out.shape[1]):
            y = sum(weight[d, j].double() * history[d, t + j] for j in range(width))
            y = y + (bias[d].double() if bias is not None else 0)
            out[d, t] = y / (1 + torch.exp(-y)) if silu else y
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_convolution_of_sequences(
    rng: torch.Generator, dtype: torch.dtype, width: int, activation: str | None, with_bias: bool, transposed: bool
) -> None:
    lengths, slots, resumed = [5, 1, 0, 2, 3], [4, 0, 2, -1, 1], [True, False, True, False, True]
    dim, total = 6, sum(lengths)
    x = torch.randn(dim, total, generator=rng).to(dtype)
    x = x.t().contiguous().t() if transposed else x
    weight = torch.randn(dim, width, generator=rng).to(dtype)
    bias = torch.randn(dim, generator=rng).to(dtype) if with_bias else None
    states = torch.randn(6, dim, width - 1, generator=rng).to(dtype)
    before = states.clone()
    starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    out = causal_conv1d_fn_cpu(
        x, weight, bias, activation=activation, conv_states=states, has_initial_state=torch.tensor(resumed),
        cache_indices=torch.tensor(slots, dtype=torch.int32), query_start_loc=torch.tensor(starts, dtype=torch.int32),
        seq_lens_cpu=lengths,
    )  # fmt: skip
    for slot, resume, start, end in zip(slots, resumed, starts, starts[1:], strict=False):
        if slot < 0:
            assert not out[:, start:end].any()
            continue
        past = before[slot] if resume else torch.zeros_like(before[slot])
        history = torch.cat([past, x[:, start:end]], 1)
        close(out[:, start:end], convolve(history.double(), weight, bias, activation == "silu"), dtype)
        expected = history[:, end - start :] if end > start else before[slot]
        assert torch.equal(states[slot], expected)
    assert torch.equal(states[[3, 5]], before[[3, 5]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps", [None, 1, 3])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_convolution_of_next_tokens(
    rng: torch.Generator, dtype: torch.dtype, steps: int | None, activation: str | None
) -> None:
    dim, width, slots = 6, 4, [3, -1, 0]
    # As the engine passes it: a transposed view.
    x = torch.randn(3, steps or 1, dim, generator=rng).to(dtype).transpose(1, 2)
    x = x[..., 0] if steps is None else x
    weight, bias = (torch.randn(*s, generator=rng).to(dtype) for s in ((dim, width), (dim,)))
    states = torch.randn(5, dim, width - 1, generator=rng).to(dtype)
    before = states.clone()
    out = causal_conv1d_update_cpu(x, states, weight, bias, activation, conv_state_indices=torch.tensor(slots))
    assert out.shape == x.shape
    assert out.stride() == x.stride()
    for i, slot in enumerate(slots):
        if slot >= 0:
            history = torch.cat([before[slot], x[i].reshape(dim, -1)], 1)
            close(out[i].reshape(dim, -1), convolve(history.double(), weight, bias, activation == "silu"), dtype)
            assert torch.equal(states[slot], history[:, -3:])
    assert torch.equal(states[[1, 2, 4]], before[[1, 2, 4]])


@pytest.mark.parametrize("overlapping", [True, False])
def test_convolution_of_drafts_stores_the_window_after_every_draft(rng: torch.Generator, overlapping: bool) -> None:
    dim, width, steps, slots, rows = 2, 4, 3, [1, -1, 2], [0, 1, 2]
    x, weight = torch.randn(3, dim, steps, generator=rng), torch.randn(dim, width, generator=rng)
    states = torch.randn(4, dim, width - 1, generator=rng)
    before = states.clone()
    if overlapping:  # upstream may store the windows once, sharing what they share
        shared = torch.full((3, dim, width - 1 + steps - 1), 9.0)
        windows = shared.unfold(-1, width - 1, 1).transpose(1, 2)
    else:
        windows = torch.full((3, steps, dim, width - 1), 9.0)
    out = causal_conv1d_update_cpu(
        x, states, weight, None, "silu", conv_state_indices=torch.tensor(slots), intermediate_conv_window=windows,
        intermediate_state_indices=torch.tensor(rows), retrieve_next_token=None, retrieve_next_sibling=None,
        retrieve_parent_token=None,
    )  # fmt: skip
    assert torch.equal(states, before)
    for i, slot in enumerate(slots):
        if slot < 0:
            assert (windows[rows[i]] == 9).all()
            continue
        history = torch.cat([before[slot], x[i]], 1)
        close(out[i], convolve(history.double(), weight, None, True), torch.float32)
        for t in range(steps):
            assert torch.equal(windows[rows[i], t], history[:, t + 1 : t + width])


def test_convolution_continues_where_prefill_stopped(rng: torch.Generator) -> None:
    x, weight = torch.randn(3, 9, generator=rng), torch.randn(3, 4, generator=rng)
    states, slot = torch.zeros(2, 3, 3), torch.tensor([1])
    whole = causal_conv1d_fn_cpu(
        x, weight, None, "silu", conv_states=states.clone(), cache_indices=slot, query_start_loc=torch.tensor([0, 9])
    )
    first = causal_conv1d_fn_cpu(
        x[:, :2], weight, None, "silu", conv_states=states, cache_indices=slot, query_start_loc=torch.tensor([0, 2])
    )
    rest = [
        causal_conv1d_update_cpu(x[:, t][None], states, weight, None, "silu", conv_state_indices=slot)[0]
        for t in range(2, 9)
    ]
    torch.testing.assert_close(torch.cat([first, torch.stack(rest, 1)], 1), whole)


# Gates


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_norm(rng: torch.Generator, dtype: torch.dtype) -> None:
    x, z = (torch.randn(3, 5, 16, generator=rng).to(dtype) for _ in range(2))
    weight = torch.randn(16, generator=rng).to(dtype)
    expected = torch.empty(3, 5, 16, dtype=torch.float64)
    for i in range(3):
        for j in range(5):
            row, gate = x[i, j].double(), z[i, j].double()
            expected[i, j] = row / torch.sqrt((row**2).sum() / 16 + 0.1) * weight.double() * gate / (1 + (-gate).exp())
    close(torch.ops.sgl_kernel.fused_rmsnorm_gated_cpu(x, weight, z, 0.1), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_shared_expert_gate(rng: torch.Generator, dtype: torch.dtype) -> None:
    hidden, shared, routed = (torch.randn(4, 8, generator=rng).to(dtype) for _ in range(3))
    weight = torch.randn(8, generator=rng).to(dtype)
    gate = 1 / (1 + torch.exp(-(hidden.double() * weight.double()).sum(-1, keepdim=True)))
    expected = routed.double() + gate * shared.double()
    close(gating.fused_gate_sigmoid_mul(hidden, weight, shared), gate * shared.double(), dtype)
    assert gating.fused_gate_sigmoid_mul_add(hidden, weight, shared, routed) is None
    close(routed, expected, dtype)


def test_gated_norm_serves_as_a_forward(rng: torch.Generator) -> None:
    x, z, weight = (torch.randn(*shape, generator=rng) for shape in ((3, 8), (3, 8), (8,)))
    module = SimpleNamespace(weight=weight, eps=0.1, norm_before_gate=True, group_size=None)
    expected = gating.fused_rmsnorm_gated_cpu(x, weight, z, 0.1)
    assert torch.equal(gating.rmsnorm_gated_forward(module, x, z), expected)
    for other in ({"norm_before_gate": False}, {"group_size": 4}):
        with pytest.raises(NotImplementedError, match="norm before gate, one group"):
            gating.rmsnorm_gated_forward(SimpleNamespace(**{**vars(module), **other}), x, z)
    with pytest.raises(NotImplementedError, match="norm before gate, one group"):
        gating.rmsnorm_gated_forward(module, x)

    fused = SimpleNamespace(weight=weight, eps=0.1, activation="silu")
    assert torch.equal(gating.fused_rmsnorm_gated_forward(fused, x, z), expected)
    refused = "FusedRMSNormGated: only the SiLU gate, without residual"
    with pytest.raises(NotImplementedError, match=refused):
        gating.fused_rmsnorm_gated_forward(SimpleNamespace(**{**vars(fused), "activation": "sigmoid"}), x, z)
    for more in ({"residual": x}, {"prenorm": True}):
        with pytest.raises(NotImplementedError, match=refused):
            gating.fused_rmsnorm_gated_forward(fused, x, z, **more)


# State pool


def test_tracked_states_are_copied_and_others_left(rng: torch.Generator) -> None:
    conv, ssm = torch.randn(6, 3, 2, generator=rng), torch.randn(6, 4, generator=rng)
    expected = [conv.clone(), ssm.clone()]
    for states in expected:
        states[5] = states[0]
    state_pool.track_mamba_states_if_needed(
        conv, ssm, torch.tensor([0, 1, -1, 2, 3]), torch.tensor([True, False, True, True, True]),
        torch.tensor([5, 4, 4, -1, 4]), 4,
    )  # fmt: skip
    assert torch.equal(conv, expected[0])
    assert torch.equal(ssm, expected[1])


def test_tracked_states_of_all_layers(rng: torch.Generator) -> None:
    conv, ssm = torch.randn(3, 6, 2, generator=rng), torch.randn(3, 6, 4, generator=rng)
    expected = [conv.clone(), ssm.clone()]
    for states in expected:
        for layer in range(3):
            states[layer, 4], states[layer, 5] = states[layer, 1].clone(), states[layer, 0].clone()
    state_pool.track_mamba_states_all_layers(
        conv, ssm, torch.tensor([0, 1]), torch.tensor([True, True]), torch.tensor([5, 4]), 2, check_freed_slots=True
    )
    assert torch.equal(conv, expected[0])
    assert torch.equal(ssm, expected[1])


@pytest.mark.parametrize("source", [None, [2, 0, 1, 1]])
def test_states_after_the_accepted_step_are_committed(rng: torch.Generator, source: list[int] | None) -> None:
    dst = torch.randn(2, 7, 3, generator=rng).bfloat16()
    src = torch.randn(2, 4, 5, 3, generator=rng)
    slots, steps = [6, -1, 0, 3], [4, 2, -1, 0]
    expected = dst.clone()
    for i, (slot, step) in enumerate(zip(slots, steps, strict=True)):
        for layer in range(2):
            if slot >= 0 and step >= 0:
                expected[layer, slot] = src[layer, i if source is None else source[i], step].bfloat16()
    state_pool.scatter_with_mask(
        dst, src, torch.tensor([*slots, 1]), torch.tensor(steps), None if source is None else torch.tensor(source)
    )
    assert torch.equal(dst, expected)


# Speculative decoding


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_slots_are_recorded_and_read_back(dtype: torch.dtype) -> None:
    pool = torch.arange(40, dtype=torch.int32).view(4, 10) + 100
    recorded = pool.clone()
    requests, start, end = torch.tensor([3, 0, 2]), torch.tensor([2, 5, 0], dtype=dtype), torch.tensor([5, 5, 4])
    speculative.assign_req_to_token_pool_cpu(requests, recorded, start, end.to(dtype), torch.arange(8), 10, 4)
    expected = pool.clone()
    expected[3, 2:5] = torch.tensor([0, 1, 2], dtype=torch.int32)
    expected[2, 0:4] = torch.tensor([3, 4, 5, 6], dtype=torch.int32)
    assert torch.equal(recorded, expected)

    out = torch.full((8,), -7, dtype=dtype)
    speculative.assign_extend_cache_locs_cpu(requests, recorded, start, end.to(dtype), out, 10)
    assert out.tolist() == [0, 1, 2, 3, 4, 5, 6, -7]

    drafts = torch.zeros(6, dtype=dtype)
    sizes = torch.tensor([1, 7], dtype=dtype)
    speculative.assign_draft_cache_locs_contiguous_cpu(torch.tensor([1, 0]), pool, sizes, drafts, 10, 1, 3)
    assert drafts.tolist() == [111, 112, 113, 107, 108, 109]


def test_draft_slots_are_recorded_after_each_sequence() -> None:
    pool = torch.zeros(3, 8, dtype=torch.int32)
    slots, nothing = torch.arange(10, 14), (None, None)
    arguments = (torch.tensor([2, 0]), pool, torch.tensor([1, 4]), *nothing, slots, *nothing, None, 0)
    speculative.assign_draft_cache_locs_cpu(*arguments, 8, 1, 2, 16, 2, 4)
    assert pool.tolist() == [[0, 0, 0, 0, 12, 13, 0, 0], [0] * 8, [0, 10, 11, 0, 0, 0, 0, 0]]
    with pytest.raises(NotImplementedError, match="assign_draft_cache_locs_cpu: page_size=16 with topk=2"):
        speculative.assign_draft_cache_locs_cpu(*arguments, 8, 2, 2, 16, 2, 4)


def test_accepted_tokens_become_an_extend() -> None:
    positions, last = torch.empty(5, dtype=torch.long), torch.empty(2, dtype=torch.int32)
    speculative.create_extend_after_decode_spec_info_cpu(
        torch.tensor([50, 51, 60, 61, 62]), torch.tensor([9, 4]), torch.tensor([2, 3], dtype=torch.int32), positions,
        last, 8,
    )  # fmt: skip
    assert positions.tolist() == [7, 8, 1, 2, 3]
    assert last.tolist() == [51, 62]


def test_bonus_tokens_and_accepted_slots() -> None:
    bonus = torch.empty(3, dtype=torch.int32)
    speculative.fill_bonus_tokens_cpu(torch.arange(12).view(3, 4), torch.tensor([1, 4, 2]), bonus, 4)
    assert bonus.tolist() == [0, 7, 9]
    out = torch.full((6,), -1)
    index = torch.tensor([[0, 1, -1], [4, -1, -1], [-1, 5, 3]], dtype=torch.int32)
    speculative.fill_accept_out_cache_loc_cpu(index, torch.arange(20, 26), out, 16)
    assert out.tolist() == [20, 21, 24, 25, 23, -1]


@pytest.mark.parametrize("hidden", [True, False])
def test_extras_are_gathered_by_request(rng: torch.Generator, hidden: bool) -> None:
    buffers = [torch.randn(5, 2, generator=rng), torch.arange(10).view(5, 2), torch.arange(5)]
    buffers.append(torch.randn(5, 3, 2, generator=rng) if hidden else None)
    gathered = speculative.gather_spec_extras_cpu(torch.tensor([4, 0, 4], dtype=torch.int32), *buffers)
    for rows, buffer in zip(gathered, buffers, strict=True):
        if buffer is None:
            assert rows is None
        else:
            assert torch.equal(rows, torch.stack([buffer[4], buffer[0], buffer[4]]))


@pytest.mark.parametrize(("select", "expected"), [(None, [1, 2, 90, 4, 91, 6]), ([1, 4], [1, 90, 2, 4, 91, 6])])
def test_inputs_rotate_left(select: list[int] | None, expected: list[int]) -> None:
    ids = torch.tensor([0, 1, 2, 3, 4, 6])
    select = None if select is None else torch.tensor(select)
    speculative.rotate_input_ids_cpu(ids, torch.tensor([0, 3]), torch.tensor([3, 2]), torch.tensor([90, 91]), select)
    assert ids.tolist() == expected


def test_cache_rows_move_even_if_they_overlap(rng: torch.Generator) -> None:
    buffers = [torch.randn(6, 2, 3, generator=rng), torch.randn(6, 5, generator=rng).bfloat16()]
    expected = [b.clone() for b in buffers]
    for b, e in zip(buffers, expected, strict=True):
        e[0], e[1], e[5] = b[1], b[2], b[0]
    addresses = torch.tensor([b.data_ptr() for b in buffers], dtype=torch.uint64)
    strides = torch.tensor([b.stride(0) * b.element_size() for b in buffers])
    speculative.copy_all_layer_kv_cache_cpu(addresses, strides, torch.tensor([0, 1, 5]), torch.tensor([1, 2, 0]))
    for b, e in zip(buffers, expected, strict=True):
        assert torch.equal(b, e)
    speculative.copy_all_layer_kv_cache_tiled_cpu(
        addresses, strides, torch.tensor([4, 3]), torch.tensor([0, 0]), 1, 256, BYTES_PER_TILE=128
    )
    for b, e in zip(buffers, expected, strict=True):
        e[4] = e[0]
        assert torch.equal(b, e)


def build_tree(
    parents: list[list[int]], topk: int, lengths: list[int], mode: int = 0, depth: int = 3
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Encode trees given as parents[request][i] = the parent of draft i + 1, and let the operator lay them out.

    A candidate's number is free as long as its group names its parent; number them so that each group is one parent.
    """
    n, count = len(parents[0]) + 1, len(parents)
    selected = torch.empty(count, n - 1, dtype=torch.long)
    parent_list = torch.full((count, topk * (depth - 1) + 1), -1, dtype=torch.long)
    for request, tree in enumerate(parents):
        group_of: dict[int, int] = {0: 0}
        used: dict[int, int] = {}
        for i, parent in enumerate(tree):
            if parent not in group_of:
                group_of[parent] = len(group_of)
                parent_list[request, group_of[parent]] = selected[request, parent - 1]
            selected[request, i] = group_of[parent] * topk + used.get(parent, 0)
            used[parent] = used.get(parent, 0) + 1
    sizes = [n * (length + n if mode == 0 else n) for length in lengths]
    mask = torch.ones(sum(sizes), dtype=torch.bool)
    positions = torch.full((count * n,), -5)
    index, token, sibling = (torch.full((count, n), -5) for _ in range(3))
    sgl_kernel.build_tree_kernel_efficient_cpu(
        parent_list, selected, torch.tensor(lengths), mask, positions, index, token, sibling, topk, depth, n, mode
    )
    return mask.split(sizes), positions.view(count, n), index, token, sibling


TREES = {
    "chain": ([[0, 1, 2]], 1),
    "chains": ([[0, 1, 2], [0, 1, 2]], 1),
    "star": ([[0, 0, 0]], 3),
    "bushy": ([[0, 0, 1, 1, 2, 3], [0, 1, 1, 3, 3, 0]], 3),
}


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("name", TREES)
def test_tree_layout_equals_a_walk(name: str, mode: int) -> None:
    parents, topk = TREES[name]
    lengths = [5, 2][: len(parents)]
    masks, positions, index, token, sibling = build_tree(parents, topk, lengths, mode, depth=4)
    n = len(parents[0]) + 1
    assert index.tolist() == [[r * n + i for i in range(n)] for r in range(len(parents))]
    for r, tree in enumerate(parents):
        parent = [-1, *tree]
        visible = masks[r].view(n, -1)
        assert visible[:, :-n].all()
        for i in range(n):
            path = [i]
            while parent[path[-1]] != -1:
                path.append(parent[path[-1]])
            assert visible[i, -n:].nonzero().flatten().tolist() == sorted(path)
            assert positions[r, i] == lengths[r] + len(path) - 1
            children = [c for c in range(n) if parent[c] == i]
            assert token[r, i] == (children[0] if children else -1)
            for child, after in zip(children, [*children[1:], -1], strict=False):
                assert sibling[r, child] == after
        assert sibling[r, 0] == -1


def test_one_draft_needs_no_parents() -> None:
    index, token, sibling = (torch.empty(1, 2, dtype=torch.long) for _ in range(3))
    mask, positions = torch.zeros(4, dtype=torch.bool), torch.empty(2, dtype=torch.long)
    sgl_kernel.build_tree_kernel_efficient_cpu(
        torch.empty(1, 0, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long), torch.tensor([3]), mask, positions,
        index, token, sibling, 1, 1, 2, 1,
    )  # fmt: skip
    assert mask.tolist() == [True, False, True, True]
    assert positions.tolist() == [3, 4]
    assert token.tolist() == [[1, -1]]


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("seed", range(8))
def test_verification_equals_a_walk(name: str, seed: int) -> None:
    parents, topk = TREES[name]
    rng = torch.Generator().manual_seed(seed)
    count, n, longest = len(parents), len(parents[0]) + 1, 3
    _, _, index, token, sibling = build_tree(parents, topk, [4] * count, depth=4)
    candidates = torch.empty(count, n, dtype=torch.long)
    for r, tree in enumerate(parents):  # siblings differ, as topk drafts do; few distinct tokens, so that some match
        for i, parent in enumerate([-1, *tree]):
            candidates[r, i] = sum(p == parent for p in tree[: i - 1]) if i else 0
    target = torch.randint(0, 3 if topk > 1 else 2, (count, n), generator=rng)
    predicts = torch.full((count * n,), -9, dtype=torch.int32)
    accepted, number = torch.full((count, longest), -1, dtype=torch.int32), torch.empty(count, dtype=torch.int32)
    sgl_kernel.verify_tree_greedy_cpu(
        predicts=predicts, accept_index=accepted, accept_token_num=number, candidates=candidates, retrive_index=index,
        retrive_next_token=token, retrive_next_sibling=sibling, target_predict=target,
    )  # fmt: skip
    for r, tree in enumerate(parents):
        path = [0]
        while len(path) < longest:
            nexts = [i + 1 for i, p in enumerate(tree) if p == path[-1] and candidates[r, i + 1] == target[r, path[-1]]]
            if not nexts:
                break
            path.append(nexts[0])
        assert accepted[r].tolist() == [r * n + i for i in path] + [-1] * (longest - len(path))
        assert number[r] == len(path) - 1
        for i in range(n):
            assert predicts[r * n + i] == (target[r, i] if i in path else -9)


# Drafts and upstream's native attention


class Batch(SimpleNamespace):
    """What the native backend reads of a forward batch."""

    def __init__(self, mode: str, topk: int | None = 1, **fields: object) -> None:
        forward_mode = SimpleNamespace(name=mode, is_target_verify=lambda: mode == "TARGET_VERIFY")
        spec_info = SimpleNamespace(draft_token_num=4, **({} if topk is None else {"topk": topk}))
        super().__init__(forward_mode=forward_mode, spec_info=spec_info, seq_lens=torch.tensor([7, 3]), **fields)


Makers = dict[str, Callable[[], tuple[str, object]]]


class Native:
    """Stands for TorchNativeAttnBackend: returns the batch that it is given."""

    def __init__(self, model_runner: str) -> None:
        self.model_runner = model_runner
        self.prepared: list[object] = []

    def init_forward_metadata(self, forward_batch: object) -> None:
        self.prepared.append(forward_batch)

    def forward_extend(
        self, q: object, k: object, v: object, layer: object, forward_batch: object, save_kv_cache: bool = True
    ) -> tuple[object, bool]:
        return forward_batch, save_kv_cache

    def forward_decode(
        self, q: object, k: object, v: object, layer: object, forward_batch: object, save_kv_cache: bool = True
    ) -> tuple[object, bool]:
        return self.forward_extend(q, k, v, layer, forward_batch, save_kv_cache)


def test_native_attention_sees_drafts_as_an_extension() -> None:
    extend = native_draft.describe_speculative_extend(Native.forward_extend)
    stale = torch.tensor([90, 90])

    plain = Batch("EXTEND", extend_prefix_lens=stale)
    assert extend(Native("r"), 1, 2, 3, 4, plain, False) == (plain, False)

    verify, saved = extend(
        Native("r"), 1, 2, 3, 4, Batch("TARGET_VERIFY", extend_prefix_lens=None, out_cache_loc="loc")
    )
    assert verify.seq_lens.tolist() == [11, 7]
    assert verify.extend_prefix_lens.tolist() == [7, 3]
    assert verify.extend_seq_lens.tolist() == [4, 4]
    assert (verify.out_cache_loc, saved) == ("loc", True)

    batch = Batch("DRAFT_EXTEND", extend_prefix_lens=stale, extend_seq_lens=torch.tensor([2, 1]))
    draft, _ = extend(Native("r"), 1, 2, 3, 4, batch)
    assert draft.extend_prefix_lens.tolist() == [5, 2]
    assert draft.seq_lens.tolist() == [7, 3]
    assert batch.extend_prefix_lens is stale


@pytest.mark.parametrize("topk", [2, None])
def test_native_attention_refuses_trees(topk: int | None) -> None:
    extend = native_draft.describe_speculative_extend(Native.forward_extend)
    with pytest.raises(NotImplementedError, match=f"topk={topk}; set speculative_eagle_topk to 1"):
        extend(Native("r"), 1, 2, 3, 4, Batch("TARGET_VERIFY", topk=topk))


@pytest.mark.parametrize("named", [True, False])
def test_native_attention_is_offered_for_drafts(named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = SimpleNamespace(TorchNativeAttnBackend=Native)
    monkeypatch.setitem(sys.modules, "sglang.srt.layers.attention.torch_native_backend", upstream)

    def create(self: object, name: str, makers: Makers, template: str) -> object:
        return makers["torch_native"]()

    def create_named(self: object, name: str, makers: Makers, template: str, stamps_children: bool = False) -> object:
        kind, backend = makers["torch_native"]()
        assert kind == "torch_native"
        return backend

    offer = native_draft.offer_torch_native(create_named if named else create)
    factory = SimpleNamespace(draft_model_runner="runner", topk=1, speculative_num_steps=3)

    extend = offer(factory, "prefill_attention_backend", {}, "no {backend_type}")
    assert type(extend) is Native
    assert extend.model_runner == "runner"

    steps = offer(factory, "decode_attention_backend", {}, "no {backend_type}")
    assert steps.needs_cpu_seq_lens
    lengths = []
    for backend in steps.attn_backends:
        batch, _ = backend.forward_decode(1, 2, 3, 4, Batch("DECODE"))
        lengths.append(batch.seq_lens.tolist())
    assert lengths == [[8, 4], [9, 5]]  # the token just drafted attends to itself
    steps.init_forward_metadata("batch")
    assert [backend.prepared for backend in steps.attn_backends] == [["batch"], ["batch"]]

    with pytest.raises(NotImplementedError, match="topk=4"):
        offer(SimpleNamespace(**{**vars(factory), "topk": 4}), "decode_attention_backend", {}, "")


# What is not there


def test_unsupported_arguments_name_operator_and_argument(rng: torch.Generator) -> None:
    case = GatedDeltaCase(rng, 3, torch.float32)
    gates = [t.float()[None] for t in case.gates()]
    step = (case.A_log, case.dt_bias, case.q, case.k, case.v, case.a, case.b, case.pool, torch.tensor([0, 1, 2]))
    links = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(NotImplementedError, match="chunk_gated_delta_rule_cpu: head_first"):
        gated_delta.chunk_gated_delta_rule_cpu(
            case.q, case.k, case.v, *gates, case.pool, torch.tensor([0, 3]), head_first=True
        )
    with pytest.raises(NotImplementedError, match="fused_sigmoid_gating_delta_rule_update_cpu: is_kda"):
        gated_delta.fused_sigmoid_gating_delta_rule_update_cpu(*step, is_kda=True)
    with pytest.raises(NotImplementedError, match="softplus_beta=2"):
        gated_delta.fused_sigmoid_gating_delta_rule_update_cpu(*step, softplus_beta=2.0)
    with pytest.raises(NotImplementedError, match="retrieve_parent_token"):
        gated_delta.fused_sigmoid_gating_delta_rule_update_cpu(*step, retrieve_parent_token=links)
    with pytest.raises(NotImplementedError, match="unequal length"):
        gated_delta.fused_sigmoid_gating_delta_rule_update_cpu(*step, cu_seqlens=torch.tensor([0, 1, 3]))
    with pytest.raises(NotImplementedError, match="causal_conv1d_update_cpu: retrieve_parent_token"):
        causal_conv1d_update_cpu(
            torch.zeros(1, 2), torch.zeros(1, 2, 3), torch.zeros(2, 4), None, conv_state_indices=torch.tensor([0]),
            retrieve_parent_token=links,
        )  # fmt: skip
    with pytest.raises(ValueError, match="activation='relu'"):
        causal_conv1d_update_cpu(
            torch.zeros(1, 2),
            torch.zeros(1, 2, 3),
            torch.zeros(2, 4),
            None,
            "relu",
            conv_state_indices=torch.tensor([0]),
        )
    with pytest.raises(NotImplementedError, match="build_tree_kernel_efficient_cpu: tree_mask_mode=2"):
        build_tree([[0, 1]], 1, [3], mode=2)


def test_missing_kernels_import_and_fail_when_called() -> None:
    from sgl_kernel import merge_state_v2
    from sgl_kernel.kvcacheio import transfer_kv_per_layer

    with pytest.raises(NotImplementedError, match=r"sgl_kernel\.merge_state_v2 has no CPU implementation"):
        merge_state_v2(1, b=2)
    with pytest.raises(NotImplementedError, match=r"sgl_kernel\.kvcacheio\.transfer_kv_per_layer"):
        transfer_kv_per_layer()


def test_kernels_that_upstream_can_do_without_stay_missing() -> None:
    with pytest.raises(ImportError, match="awq_dequantize"):
        from sgl_kernel import awq_dequantize  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match=r"sgl_kernel\.flash_attn has no CPU implementation"):
        import sgl_kernel.flash_attn  # noqa: F401
    assert not hasattr(torch.ops.sgl_kernel, "convert_weight_packed")  # else upstream takes the host for one with AMX


# Attention


def torchs_own(*_: object) -> None:
    """Stand in for the function that is wrapped: it gives nothing where it is called."""


class Cached:
    """Random keys and values of requests of some lengths, in a cache whose other slots hold what is no number."""

    def __init__(
        self, rng: torch.Generator, lengths: list[int], heads: int = 4, kv_heads: int = 2, size: int = 16
    ) -> None:
        self.lengths, self.heads, self.size, self.value_size = lengths, heads, size, size + 8
        slots = torch.randperm(sum(lengths) + 50, generator=rng)
        self.keys = torch.full((len(slots), kv_heads, size), torch.nan)
        self.values = torch.full((len(slots), kv_heads, self.value_size), torch.nan)
        self.table = slots[-1].repeat(len(lengths) + 3, max(lengths) + 5).int()  # of which no request has it
        self.requests = torch.randperm(len(lengths) + 3, generator=rng)[: len(lengths)]
        for request, own in zip(self.requests, slots.split([*lengths, 50]), strict=False):
            self.table[request, : len(own)] = own.int()
            self.keys[own] = torch.randn(len(own), kv_heads, size, generator=rng)
            self.values[own] = torch.randn(len(own), kv_heads, self.value_size, generator=rng)

    def given(self) -> tuple[torch.Tensor, ...]:
        """Return what upstream's methods take after the query and the output."""
        return self.keys, self.values, self.table, self.requests, torch.tensor(self.lengths)

    def moved(
        self, rng: torch.Generator, window: int, new: Sequence[int]
    ) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor, torch.Tensor]:
        """Move all to other slots, but for what no query of each request's `new` last tokens sees: that has none.

        Returns what maps slots to those, and what `given` gives first, keys and values.
        """
        places = torch.randperm(len(self.keys), generator=rng)
        nobodys = int(places[self.table[-1, -1].long()])
        for request, length, queries in zip(self.requests, self.lengths, new, strict=True):
            places[self.table[request, : max(0, length - queries - window)].long()] = nobodys
        keys, values = (torch.full_like(cache, torch.nan) for cache in (self.keys, self.values))
        for there, cache in ((keys, self.keys), (values, self.values)):
            there[places] = cache
            there[nobodys] = torch.nan
        return lambda slots: places[slots], keys, values

    def truth(self, number: int, query: torch.Tensor, window: int | None, cap: float = 0.0) -> torch.Tensor:
        """Compute attention for the last tokens of a request in float64, one by one."""
        own, length = self.table[self.requests[number]].long(), self.lengths[number]
        rows = []
        for row, at in zip(query, range(length - len(query), length), strict=True):
            seen = own[0 if window is None else max(0, at - window) : at + 1]
            keys, values = (cache[seen].double().repeat_interleave(2, dim=1) for cache in (self.keys, self.values))
            scores = torch.einsum("hd,khd->hk", row.double(), keys) * 0.3
            weights = ((cap * (scores / cap).tanh()) if cap else scores).softmax(-1)
            rows.append(torch.einsum("hk,khd->hd", weights, values))
        return torch.stack(rows)


def backend(
    window: int | None, cap: float = 0.0, places: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> SimpleNamespace:
    """Stand in for upstream's backend that is about to compute a layer; `places`, if its pool holds windows alone."""
    layer = SimpleNamespace(layer_id=3, sliding_window_size=window, logit_cap=cap)
    pool = SimpleNamespace(layers_mapping={2: (0, True), 3: (1, False)}, translate_loc_from_full_to_swa=None)
    if places is not None:
        pool = SimpleNamespace(layers_mapping={3: (0, True)}, translate_loc_from_full_to_swa=places)
    made = SimpleNamespace(token_to_kv_pool=pool)
    native_attention.note_layer(torchs_own)(made, None, None, None, layer, None)
    before = SimpleNamespace()  # until 0.5.13 the batch has the pool
    native_attention.note_layer(torchs_own)(before, None, None, None, layer, made)
    assert before.noted_layer.window == made.noted_layer.window
    return made


@pytest.mark.parametrize("lengths", [[7], [5, 5, 6], [1, 90, 3], [64, 1, 33, 40]], ids=str)
@pytest.mark.parametrize("window", [None, 0, 4])
@pytest.mark.parametrize("cap", [0.0, 0.7])
def test_attention_of_a_decode_step_is_right(
    lengths: list[int], window: int | None, cap: float, rng: torch.Generator
) -> None:
    cached = Cached(rng, lengths)
    query = torch.randn(len(lengths), cached.heads, cached.size, generator=rng)
    output = torch.empty(len(lengths), cached.heads, cached.value_size)
    attend = native_attention.decode_at_once(torchs_own)
    options = {"scaling": 0.3, "enable_gqa": True, "causal": False}
    attend(backend(window, cap), query, output, *cached.given(), **options)
    wanted = [cached.truth(number, query[number : number + 1], window, cap) for number in range(len(lengths))]
    close(output, torch.cat(wanted), torch.float32)
    if window is not None:
        places, *moved = cached.moved(rng, window, [1] * len(lengths))
        there = *moved, *cached.given()[2:]
        attend(backend(window, cap, places), query, output.fill_(torch.nan), *there, **options)
        close(output, torch.cat(wanted), torch.float32)


@pytest.mark.parametrize("prefixes", [[0, 0, 0], [0, 64, 3], [8, 1, 39]], ids=str)
@pytest.mark.parametrize("window", [None, -1, 4, 500])
@pytest.mark.parametrize("cap", [0.0, 0.7])
def test_attention_of_what_is_new_is_right(
    prefixes: list[int], window: int | None, cap: float, rng: torch.Generator
) -> None:
    cached = Cached(rng, [9, 65, 40])
    new = [length - prefix for length, prefix in zip(cached.lengths, prefixes, strict=True)]
    query = torch.randn(sum(new), cached.heads, cached.size, generator=rng)
    output = torch.empty(sum(new), cached.heads, cached.value_size)
    attend = native_attention.extend_what_is_new(torchs_own)
    options = {"scaling": 0.3, "enable_gqa": True, "causal": True}
    lengths = torch.tensor(prefixes), torch.tensor(new)
    attend(backend(window, cap), query, output, *cached.given(), *lengths, **options)
    seen = window if window is not None and window > -1 else None
    wanted = [cached.truth(number, rows, seen, cap) for number, rows in enumerate(query.split(new))]
    close(output, torch.cat(wanted), torch.float32)
    if seen is not None:
        places, *moved = cached.moved(rng, seen, new)
        there = *moved, *cached.given()[2:]
        attend(backend(window, cap, places), query, output.fill_(torch.nan), *there, *lengths, **options)
        close(output, torch.cat(wanted), torch.float32)


def test_attention_to_an_encoder_is_upstreams() -> None:
    def upstream(*args: object, **options: object) -> tuple[object, ...]:
        return args

    decode, extend = native_attention.decode_at_once(upstream), native_attention.extend_what_is_new(upstream)
    assert decode(0, 1, 2, 3, 4, 5, 6, 7, 8) == tuple(range(9))
    assert extend(*range(11), causal=True) == tuple(range(11))
    assert extend(*range(10), causal=False) == tuple(range(10))


# Products with weights


@pytest.mark.parametrize("rows", [(8,), (2, 5), (64,)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_large_product_is_onednns_and_right(rows: tuple[int, ...], biased: bool, rng: torch.Generator) -> None:
    x, weight = torch.randn(*rows, 600, generator=rng), torch.randn(700, 600, generator=rng)
    bias = torch.randn(700, generator=rng) if biased else None
    call = linear.linear_by_onednn(torchs_own)
    with torch.inference_mode():
        wanted = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
        torch.testing.assert_close(call(x, weight, bias).double(), wanted, rtol=1e-5, atol=1e-3)
        weight.mul_(2)  # as an update of weights does, in place
        wanted = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
        torch.testing.assert_close(call(x, weight, bias).double(), wanted, rtol=1e-5, atol=1e-3)
        if not biased:
            got = linear.matmul_by_onednn(torchs_own)(x, weight.t())
            torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.ones(8, 64), torch.ones(64, 64)),  # too small
        (torch.ones(600), torch.ones(7000, 600)),  # a vector
        (torch.ones(0, 600), torch.ones(7000, 600)),  # nothing
        (torch.ones(8, 600).bfloat16(), torch.ones(700, 600).bfloat16()),  # torch itself takes oneDNN
        (torch.ones(8, 600).double(), torch.ones(700, 600).double()),
        (torch.ones(8, 600), torch.ones(600, 700).t()),  # not one row after another
        (torch.ones(8, 600, requires_grad=True), torch.ones(700, 600)),
    ],
    ids=["small", "vector", "empty", "bfloat16", "float64", "transposed", "gradient"],
)
def test_other_products_are_torchs_own(x: torch.Tensor, weight: torch.Tensor) -> None:
    assert linear.linear_by_onednn(torchs_own)(x, weight) is None
    assert linear.matmul_by_onednn(torchs_own)(x, weight.t()) is None
