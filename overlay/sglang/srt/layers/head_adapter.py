"""A residual adapter of low rank on the hidden states that go to the head: h + up(down(h))."""

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
    size,
    rank,
    row_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    of_rank = tl.arange(0, RANK)
    low = tl.full((ROWS, RANK), 0.0, dtype=tl.float32)
    for start in range(0, size, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        x = tl.load(
            hidden_states + row * row_stride + column[None, :], mask=(row < rows) & (column < size)[None, :], other=0.0
        )
        weight = tl.load(
            down + of_rank[None, :] * size + column[:, None],
            mask=(of_rank < rank)[None, :] & (column < size)[:, None],
            other=0.0,
        )
        low = tl.dot(x, weight, low, input_precision="ieee")
    low = low.to(hidden_states.dtype.element_ty)
    # The programs of the second axis share the columns of the result, each after the whole of the first product.
    for start in range(tl.program_id(1) * COLUMNS, size, tl.num_programs(1) * COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        weight = tl.load(
            up + column[None, :] * rank + of_rank[:, None],
            mask=(of_rank < rank)[:, None] & (column < size)[None, :],
            other=0.0,
        )
        inside = (row < rows) & (column < size)[None, :]
        x = tl.load(hidden_states + row * row_stride + column[None, :], mask=inside)
        y = tl.dot(low, weight, x.to(tl.float32), input_precision="ieee")
        tl.store(out + row * size + column[None, :], y.to(out.dtype.element_ty), mask=inside)


def adapt_triton(hidden_states: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Do what `adapt_torch` does in one kernel: sums in float32, `hidden_states` read from memory once.

    Each row of `hidden_states`, and both weights as a whole, have their values side by side. Rows do not depend on each
    other. Rank is at most MAX_FUSED_RANK.
    """
    rows, size = hidden_states.shape
    out = torch.empty_like(hidden_states, memory_format=torch.contiguous_format)
    few = rows <= 256  # then programs, not memory, are short
    block = 16 if few else 64
    columns = 128
    _adapt_kernel[(triton.cdiv(rows, block), triton.cdiv(size, columns) if few else 1)](
        hidden_states,
        down,
        up,
        out,
        rows,
        size,
        down.shape[0],
        hidden_states.stride(0),
        ROWS=block,
        COLUMNS=columns,
        RANK=max(16, triton.next_power_of_2(down.shape[0])),
        num_warps=4,
        num_stages=3,
    )
    return out


class HeadAdapter(nn.Module):
    """The adapter. Not sharded and never quantised: it is small, and `down` has few rows to share among ranks."""

    def __init__(self, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, rank, bias=False)
        self.up = nn.Linear(rank, hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Adapt hidden states [rows, hidden_size]."""
        fused = hidden_states.is_cuda and self.down.out_features <= MAX_FUSED_RANK
        return (adapt_triton if fused else adapt_torch)(hidden_states, self.down.weight, self.up.weight)
