"""The fused layers against formulas in float64: on a GPU as they are compiled, elsewhere in Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from engine.harness import ours
from triton.runtime.interpreter import InterpretedFunction

logit_shaping, head_adapter = ours("layers.logit_shaping"), ours("layers.head_adapter")

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DOT_DTYPES = DTYPES if GPU else DTYPES[:2]  # the interpreter multiplies the bits of bfloat16 as if they were integers
LESS = 1 if GPU else 8  # interpreting an adapter takes as long as the square of its size: minutes
NAN, INF = math.nan, math.inf


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpret the kernels where there is no GPU, these alone: upstream's stay as they are."""
    if not GPU:
        for module, name in ((logit_shaping, "_shape_kernel"), (head_adapter, "_adapt_kernel")):
            monkeypatch.setattr(module, name, InterpretedFunction(getattr(module, name).fn))
        monkeypatch.setattr(head_adapter, "_is_roomy", lambda device: True)  # it asks a GPU how much memory it has


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(11)


def shaped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Write out both transforms in float64."""
    x = logits.double()
    return torch.where(x > 0, x, 0.0 * x).sqrt() if cap is None else cap * (x / cap).tanh()


SHAPES = [(0, 260), (1, 1), (1, 260), (3, 2048), (5, 2049), (2, 32_001), (64, 4096), (2, 151_936)]


@pytest.mark.parametrize("way", ["shape_triton", "shape_torch"])
@pytest.mark.parametrize("cap", [None, 0.5, 15.0, 30.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_of_any_shape_and_dtype(shape: tuple[int, int], dtype: torch.dtype, cap: float | None, way: str) -> None:
    logits = (20 * torch.randn(shape, device=DEVICE)).to(dtype)
    kept = logits.clone()
    buffer = torch.full((shape[0] + 1, shape[1]), -7.0, device=DEVICE)
    out = buffer[: shape[0]]
    assert getattr(logit_shaping, way)(logits, out, cap) is out
    torch.testing.assert_close(out.double(), shaped(logits, cap), rtol=2e-6, atol=1e-7 * (cap or 1))
    assert torch.equal(logits, kept)
    assert buffer[-1].eq(-7).all()  # the next row is another request's


@pytest.mark.parametrize("cap", [None, 15.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_of_any_layout(dtype: torch.dtype, cap: float | None) -> None:
    padded = torch.randn(6, 320, device=DEVICE).to(dtype)
    gathered = torch.randn(260, 6, device=DEVICE).to(dtype).T  # as from ranks that share the vocabulary unevenly
    for logits in (padded[:, :260], gathered, padded[::2, 1:261]):
        out = torch.full(logits.shape, NAN, device=DEVICE)
        logit_shaping.shape_triton(logits, out, cap)
        torch.testing.assert_close(out.double(), shaped(logits, cap), rtol=2e-6, atol=2e-6)


def far_apart(values: torch.Tensor) -> torch.Tensor:
    """Copy three rows to places of which the last is more values away than 32 bits count; most is never touched."""
    rows, columns = values.shape
    stride = 2**30 + 8
    memory = torch.empty((rows - 1) * stride + columns, dtype=values.dtype, device=DEVICE)
    return memory.as_strided((rows, columns), (stride, 1)).copy_(values)


@pytest.mark.parametrize("cap", [None, 15.0])
def test_more_logits_than_32_bits_count(cap: float | None) -> None:
    logits = far_apart(20 * torch.randn(3, 260, device=DEVICE, dtype=torch.float16))
    out = logit_shaping.shape_triton(logits, far_apart(torch.zeros(3, 260, device=DEVICE)), cap)
    torch.testing.assert_close(out.double(), shaped(logits, cap), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("cap", [None, 15.0])
def test_logits_in_place(cap: float | None) -> None:
    logits = 20 * torch.randn(5, 2500, device=DEVICE)
    wanted = shaped(logits, cap)
    assert logit_shaping.shape_triton(logits, logits, cap) is logits
    torch.testing.assert_close(logits.double(), wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("way", ["shape_triton", "shape_torch"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_at_the_extremes(dtype: torch.dtype, way: str) -> None:
    tiny = torch.finfo(dtype).tiny
    most = torch.finfo(dtype).max
    logits = torch.tensor([[-INF, -most, -4, -tiny, -0.0, 0, tiny, 4, most, INF, NAN]], device=DEVICE).to(dtype)
    for cap, wanted in (
        (2.0, [-2, -2, -2 * math.tanh(2), -tiny, 0, 0, tiny, 2 * math.tanh(2), 2, 2, NAN]),
        (None, [0, 0, 0, 0, 0, 0, tiny**0.5, 2, most**0.5, INF, NAN]),
    ):
        out = getattr(logit_shaping, way)(logits, torch.empty(logits.shape, device=DEVICE), cap)
        assert out[0].tolist() == pytest.approx(wanted, rel=1e-6, abs=1e-7, nan_ok=True)


def adapted(hidden: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Write out the adapter in float64."""
    hidden, down, up = hidden.double(), down.double(), up.double()
    return hidden + torch.einsum("rh,kh,ok->ro", hidden, down, up)


def weights(size: int, rank: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw an adapter that changes hidden states by about as much as they are."""
    down = torch.randn(rank, size, device=DEVICE) / size**0.5
    return down.to(dtype), (torch.randn(size, rank, device=DEVICE) / rank**0.5).to(dtype)


# How far from float64, relative to the values' size: sums in float32, and one or, for PyTorch, three roundings.
ROUNDING = {torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.mark.parametrize("way", ["adapt_triton", "adapt_torch"])
@pytest.mark.parametrize("dtype", DOT_DTYPES)
@pytest.mark.parametrize("rank", [1, 8, 16, 100, 128])
@pytest.mark.parametrize(
    ("rows", "size"), [(0, 128), (1, 128), (3, 208), (17, 144), (64, 512 // LESS), (1100, 96), (2, 2048 // LESS)]
)
def test_adapter_of_any_size_and_dtype(rows: int, size: int, rank: int, dtype: torch.dtype, way: str) -> None:
    hidden = torch.randn(rows, size, device=DEVICE).to(dtype)
    kept = hidden.clone()
    down, up = weights(size, rank, dtype)
    out = getattr(head_adapter, way)(hidden, down, up)
    assert (out.dtype, out.shape) == (dtype, hidden.shape)
    torch.testing.assert_close(out.double(), adapted(hidden, down, up), rtol=0, atol=4 * ROUNDING[dtype])
    assert torch.equal(hidden, kept)  # a draft model is handed it


@pytest.mark.parametrize("dtype", DOT_DTYPES)
@pytest.mark.parametrize(("rows", "rank"), [(8200, 32), (16_500, 64), (33_000, 128)])
def test_adapter_of_many_rows(rows: int, rank: int, dtype: torch.dtype) -> None:
    hidden = torch.randn(rows, 32, device=DEVICE).to(dtype)
    down, up = weights(32, rank, dtype)
    out = head_adapter.adapt_triton(hidden, down, up)
    torch.testing.assert_close(out.double(), adapted(hidden, down, up), rtol=0, atol=4 * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DOT_DTYPES)
def test_fused_adapter_is_no_further_from_the_truth_than_three_operations(dtype: torch.dtype) -> None:
    hidden = torch.randn(256, 1024, device=DEVICE).to(dtype)
    down, up = weights(1024, 16, dtype)
    truth = adapted(hidden, down, up)
    fused, apart = (
        (way(hidden, down, up).double() - truth).norm() / truth.norm()
        for way in (head_adapter.adapt_triton, head_adapter.adapt_torch)
    )
    assert fused < ROUNDING[dtype]
    if dtype != torch.float32:  # there, both differ from the truth by the order of sums alone
        assert fused < apart


@pytest.mark.parametrize("rows", [1, 40, 1100])
def test_rows_of_an_adapter_do_not_depend_on_each_other(rows: int) -> None:
    wide = torch.randn(rows, 400, device=DEVICE).to(torch.float16)
    hidden = wide[:, 64:320]  # rows further apart than they are long
    down, up = weights(256, 16, torch.float16)
    out = head_adapter.adapt_triton(hidden, down, up)
    assert torch.equal(out, head_adapter.adapt_triton(hidden, down, up))
    assert torch.equal(out, head_adapter.adapt_triton(hidden.contiguous(), down, up))
    hidden[1:] = torch.tensor([NAN, INF], device=DEVICE).repeat(128)  # what padding may hold
    assert torch.equal(out[0], head_adapter.adapt_triton(hidden, down, up)[0])


def test_more_hidden_states_than_32_bits_count() -> None:
    hidden = torch.randn(3, 256, device=DEVICE).to(torch.float16)
    down, up = weights(256, 16, torch.float16)
    out = head_adapter.adapt_triton(far_apart(hidden), down, up)
    assert torch.equal(out, head_adapter.adapt_triton(hidden, down, up))


def test_an_adapter_that_has_no_kernel_is_not_fused() -> None:
    for size, rank, fused in ((2048, 128, True), (2048, 129, False), (200, 8, False), (16, 1, True)):
        assert head_adapter.can_fuse(torch.empty(rank, size)) is fused
