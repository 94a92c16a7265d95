"""A residual adapter of low rank on the hidden states that go to the head: h + up(down(h))."""

import functools

import torch
import triton
import triton.language as tl
from torch import nn

MAX_FUSED_RANK = 128  # what a program keeps of it beside the hidden states


def adapt_torch(hidden_states: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return `hidden_states + hidden_states @ down.T @ up.T`.

    - `hidden_states`: [rows, hidden_size].
    - `down`: [rank, hidden_size]; `up`: [hidden_size, rank]; all three of one dtype.
    """
    return hidden_states + nn.functional.linear(nn.functional.linear(hidden_states, down), up)


@triton.jit
def _adapt_kernel(
    hidden_states,
    down,
    up,
    out,
    rows,
    row_stride,
    size: tl.constexpr,
    rank: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHARED: tl.constexpr,
    RANK: tl.constexpr,
    STAGES: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    inside = row < rows
    of_rank = tl.arange(0, RANK)
    low = tl.full((ROWS, RANK), 0.0, dtype=tl.float32)
    for start in tl.range(0, size, COLUMNS, num_stages=STAGES):
        column = start + tl.arange(0, COLUMNS)
        source = hidden_states + row * row_stride + column[None, :]
        x = tl.load(source, mask=inside, other=0.0, eviction_policy="evict_last")
        source = down + of_rank[None, :] * size + column[:, None]
        weight = tl.load(source) if rank == RANK else tl.load(source, mask=(of_rank < rank)[None, :], other=0.0)
        low = tl.dot(x, weight, low, input_precision="ieee")
    low = low.to(hidden_states.dtype.element_ty)
    # SHARED programs, on the second axis, share the columns of the result, each after the whole of the first product.
    # The last columns come first: they were read last, and the cache holds them still.
    # Triton sends nothing ahead for this loop unless it is asked to: its hidden states are added to a product.
    for start in tl.range(0, size, SHARED * COLUMNS, num_stages=STAGES):
        column = size - COLUMNS - start - tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        source = up + column[None, :] * rank + of_rank[:, None]
        weight = tl.load(source) if rank == RANK else tl.load(source, mask=(of_rank < rank)[:, None], other=0.0)
        source = hidden_states + row * row_stride + column[None, :]
        x = tl.load(source, mask=inside, eviction_policy="evict_first")
        y = tl.dot(low, weight, x.to(tl.float32), input_precision="ieee")
        target = out + row * size + column[None, :]
        tl.store(target, y.to(out.dtype.element_ty), mask=inside, eviction_policy="evict_first")


def can_fuse(down: torch.Tensor) -> bool:
    """Tell whether `adapt_triton` takes an adapter of this size: its matrix products need 16 columns at least."""
    rank, size = down.shape
    return rank <= MAX_FUSED_RANK and size % 16 == 0


def adapt_triton(hidden_states: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Do what `adapt_torch` does in one kernel: sums in float32, `hidden_states` read from memory once.

    Each row of `hidden_states`, and both weights as a whole, have their values side by side. Rows do not depend on each
    other. The size is one that `can_fuse` takes.
    """
    rows, size = hidden_states.shape
    rank = down.shape[0]
    out = torch.empty_like(hidden_states, memory_format=torch.contiguous_format)
    few = rows <= 1024  # then programs, not memory, are short
    padded = max(16, triton.next_power_of_2(rank))
    # Each program reads both weights: a large rank wants blocks of many rows, as long as there are enough blocks and
    # they fit.
    roomy = _is_roomy(hidden_states.device)
    block = max(16, min(max(32, padded) if roomy else min(64, padded), triton.next_power_of_2(rows // 256 + 1) // 2))
    # Blocks of columns divide the size, and some of them, of hidden states and weights, fit a GPU's shared memory.
    most = 16_384 // (padded * hidden_states.element_size())
    columns = min(max(16, most // 2 if few else most), size & -size)
    shared = size // columns if few else 1
    _adapt_kernel[(triton.cdiv(rows, block), shared)](
        hidden_states,
        down,
        up,
        out,
        rows,
        hidden_states.stride(0),
        size,
        rank,
        ROWS=block,
        COLUMNS=columns,
        SHARED=shared,
        RANK=padded,
        num_warps=4 if block <= 32 else 8,
        STAGES=3 if few or roomy else 2,
    )
    return out


@functools.cache
def _is_roomy(device: torch.device) -> bool:
    """Tell whether three blocks of columns, of 32 rows and of the weights, fit a multiprocessor's shared memory."""
    # Of AMD's GPUs PyTorch may not say it; they have 64 KiB.
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0) >= 160 * 1024


class HeadAdapter(nn.Module):
    """The adapter. Not sharded and never quantised: it is small, and `down` has few rows to share among ranks."""

    def __init__(self, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, rank, bias=False)
        self.up = nn.Linear(rank, hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Adapt hidden states [rows, hidden_size]."""
        fused = hidden_states.is_cuda and can_fuse(self.down.weight)
        return (adapt_triton if fused else adapt_torch)(hidden_states, self.down.weight, self.up.weight)
