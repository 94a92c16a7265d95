"""The adapter's kernel, compiled for GPUs that need not be there."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
import triton
from engine.harness import ours
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

head_adapter = ours("layers.head_adapter")

KERNEL = head_adapter._adapt_kernel
RUNTIME = {"rows", "row_stride"}  # numbers that it is given once it is compiled


@dataclass(frozen=True)
class Launch:
    """Takes the place of the kernel, and compiles what it would be launched with for another GPU than there is."""

    target: GPUTarget
    shared: list[int] = field(default_factory=list)  # bytes of a program

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._compile

    def _compile(self, *values: torch.Tensor | int, num_warps: int, **constants: int) -> None:
        names = KERNEL.arg_names
        given = dict(zip(names, values, strict=False)) | constants
        types = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
        signature = {
            name: types[value.dtype] if isinstance(value, torch.Tensor) else "i32" if name in RUNTIME else "constexpr"
            for name, value in given.items()
        }
        fixed = {(names.index(name),): given[name] for name, kind in signature.items() if kind == "constexpr"}
        aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in names if signature[name] != "constexpr"}
        source = ASTSource(KERNEL, signature, fixed, aligned)
        self.shared.append(triton.compile(source, target=self.target, options={"num_warps": num_warps}).metadata.shared)


def shared_memory(target: GPUTarget, properties: dict[str, object], dtype: torch.dtype, rank: int) -> list[int]:
    """Compile the kernel for few rows and many; return the bytes of shared memory that a program of each takes."""
    launch = Launch(target)
    down, up = torch.empty(rank, 2048, dtype=dtype), torch.empty(2048, rank, dtype=dtype)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**properties))
        patched.setattr(head_adapter, "_is_roomy", head_adapter._is_roomy.__wrapped__)  # it keeps what it was told
        patched.setattr(head_adapter, "_adapt_kernel", launch)
        for rows in (1, 1024, 65_536):
            head_adapter.adapt_triton(torch.empty(rows, 2048, dtype=dtype), down, up)
    return launch.shared


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Executor]:
    """Run in a process of its own: Triton 3.5 compiles no kernel where it has interpreted one before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        yield executor


@pytest.mark.parametrize("rank", [16, 32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("target", "properties", "limit"),
    [
        (GPUTarget("cuda", 90, 32), {"shared_memory_per_block_optin": 232_448}, 232_448),
        (GPUTarget("cuda", 80, 32), {"shared_memory_per_block_optin": 166_912}, 166_912),
        (GPUTarget("cuda", 89, 32), {"shared_memory_per_block_optin": 101_376}, 101_376),
        (GPUTarget("hip", "gfx942", 64), {"gcnArchName": "gfx942"}, 65_536),
    ],
    ids=["H200", "A100", "L40", "MI300X"],
)
def test_no_more_memory_is_taken_than_a_gpu_has(
    target: GPUTarget, properties: dict[str, object], limit: int, dtype: torch.dtype, rank: int, elsewhere: Executor
) -> None:
    taken = elsewhere.submit(shared_memory, target, properties, dtype, rank).result()
    assert all(0 < shared <= limit for shared in taken), taken
