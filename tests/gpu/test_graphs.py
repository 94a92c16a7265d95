"""The fused layers in CUDA graphs: replayed on new values, deterministic, with no wait for the host and no growth."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from engine.harness import ours

logit_shaping, head_adapter = ours("layers.logit_shaping"), ours("layers.head_adapter")
ROWS, SIZE, VOCABULARY, RANK = 64, 2048, 32_001, 16


def adapter() -> Callable[[torch.Tensor], torch.Tensor]:
    """Make an adapter with random weights."""
    down, up = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16) / SIZE**0.5 for shape in ((RANK, SIZE), (SIZE, RANK))
    )
    return lambda hidden: head_adapter.adapt_triton(hidden, down, up)


def shaper(cap: float | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Make what shapes logits into a new tensor."""
    return lambda logits: logit_shaping.shape_triton(logits, torch.empty(logits.shape, device="cuda"), cap)


LAYERS: dict[str, tuple[Callable[[], Callable[[torch.Tensor], torch.Tensor]], int]] = {
    "adapter": (adapter, SIZE),
    "softcap": (partial(shaper, 15.0), VOCABULARY),
    "sqrt_positive": (partial(shaper, None), VOCABULARY),
}


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
    """Give each layer with an input; it is compiled by then."""
    torch.manual_seed(5)
    make, size = LAYERS[request.param]
    run = make()
    values = torch.randn(ROWS, size, device="cuda", dtype=torch.bfloat16)
    run(values)
    torch.cuda.synchronize()
    return run, values


def test_replays_give_what_calls_give_whatever_the_padding_holds(
    layer: tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor],
) -> None:
    run, values = layer
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(values)
    for real in (1, 5, ROWS):
        values.normal_()
        wanted = run(values.clone())[:real]
        values[real:] = math.nan  # what an earlier batch may have left
        graph.replay()
        assert torch.equal(out[:real], wanted)
        graph.replay()
        assert torch.equal(out[:real], wanted)


def test_nothing_waits_for_the_host(layer: tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]) -> None:
    run, values = layer
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(values)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_does_not_grow(layer: tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]) -> None:
    run, values = layer
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(100):
        out = run(values)
    # An output more than is kept is alive while one replaces the other.
    assert torch.cuda.max_memory_allocated() - before <= 2 * out.nbytes + 2**21
    del out
    assert torch.cuda.memory_allocated() == before
