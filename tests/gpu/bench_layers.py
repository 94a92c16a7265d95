"""Each fused layer beside its equal in PyTorch, and beside the least that its bytes take."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from engine.harness import ours
from triton.testing import do_bench, do_bench_cudagraph

from gpu.timing import ROUNDS, figure, in_turns, ratios, table

logit_shaping, head_adapter = ours("layers.logit_shaping"), ours("layers.head_adapter")

LOGITS = [(1, 151_936), (16, 151_936), (64, 151_936), (1024, 151_936), (4096, 151_936), (4096, 65_536)]
HIDDEN, ADAPTERS = (
    2048,
    [(1, 16), (16, 16), (64, 16), (256, 16), (4096, 16), (32_768, 16), (131_072, 16), (131_072, 64)],
)
IN_CACHE = 2**25  # bytes: less stays in a GPU's cache from one run to the next


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A layer at a size: `moved`, the bytes that must be read and written at least, and both ways to run it."""

    name: str
    moved: int
    fused: Callable[[], object]
    apart: Callable[[], object]


def logits_case(rows: int, vocabulary: int, cap: float | None) -> Case:
    """Shape logits of a head in bfloat16."""
    logits = torch.randn(rows, vocabulary, device="cuda", dtype=torch.bfloat16)
    out = torch.empty(rows, vocabulary, device="cuda")
    return Case(
        name=f"{'softcap' if cap else 'sqrt_positive'}, {rows} x {vocabulary}",
        moved=logits.nbytes + out.nbytes,
        fused=lambda: logit_shaping.shape_triton(logits, out, cap),
        apart=lambda: logit_shaping.shape_torch(logits, out, cap),
    )


def adapter_case(rows: int, rank: int) -> Case:
    """Adapt hidden states in bfloat16."""
    hidden = torch.randn(rows, HIDDEN, device="cuda", dtype=torch.bfloat16)
    down = torch.randn(rank, HIDDEN, device="cuda", dtype=torch.bfloat16) / HIDDEN**0.5
    up = torch.randn(HIDDEN, rank, device="cuda", dtype=torch.bfloat16) / rank**0.5
    return Case(
        name=f"adapter of rank {rank}, {rows} x {HIDDEN}",
        moved=2 * hidden.nbytes + down.nbytes + up.nbytes,
        fused=lambda: head_adapter.adapt_triton(hidden, down, up),
        apart=lambda: head_adapter.adapt_torch(hidden, down, up),
    )


def copy_rate() -> float:
    """Measure what a large copy on the GPU moves, in bytes read and written a microsecond."""
    source = torch.randn(2**29, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    times = [do_bench(lambda: target.copy_(source), return_mode="median") for _ in range(ROUNDS)]
    return float(2 * source.nbytes / (1e3 * statistics.median(times)))


def measured(case: Case, rate: float) -> list[str]:
    """Time one case; give its row of the table. Small ones are timed in a CUDA graph, as they are served."""
    small = case.moved < IN_CACHE
    bench = do_bench_cudagraph if small else do_bench
    times = in_turns(
        {
            "fused": lambda: 1e3 * bench(case.fused, return_mode="median"),
            "apart": lambda: 1e3 * bench(case.apart, return_mode="median"),
        }
    )
    floor = case.moved / rate
    share = "in cache" if small else f"{floor / statistics.median(times['fused']):.0%}"
    times_faster = ratios(times["apart"], times["fused"])
    figures = [figure(times["fused"], ".1f"), figure(times["apart"], ".1f"), figure(times_faster, ".2f")]
    return [case.name, *figures, f"{floor:.1f}", share]


def bench_layers() -> None:
    """Time all cases, one after the other: they hold gigabytes."""
    rate = copy_rate()
    print(f"\nA copy of 1 GiB on the GPU: {rate / 1e6:.2f} TB/s, read and written.")
    logits = (measured(logits_case(*size, cap), rate) for size in LOGITS for cap in (30.0, None))
    adapters = (measured(adapter_case(*size), rate) for size in ADAPTERS)
    head = ["layer, rows x columns", "fused, µs", "PyTorch, µs", "times faster", "floor, µs", "of the floor's speed"]
    table("Fused layers, bfloat16", head, itertools.chain(logits, adapters))
