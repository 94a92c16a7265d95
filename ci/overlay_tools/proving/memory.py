"""Whether an engine and a reference model fit into memory, from the headers of a checkpoint's shards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from overlay_tools.checkpoints.named import read_config
from overlay_tools.checkpoints.safetensors_header import INDEX, Stored, measure_tensors, shards_of
from overlay_tools.errors import CompareError
from overlay_tools.subprocesses import run

_GIB = 1 << 30
_PROCESSES = 3 * _GIB  # what the engine's processes or the reference model's take with the smallest of checkpoints
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_PLAIN = ("F64", "F32", "F16", "BF16")  # what an engine loads in its own dtype; it keeps others as they are stored
_PACKED = {"I32": 8, "U8": 2}  # values of four bits in one of them, as GPTQ and MXFP4 have it
_CGROUP = Path("/sys/fs/cgroup")
_MEMORY = Path("/proc/meminfo")


def count_tensors(checkpoint: Path) -> dict[str, Stored]:
    """Return how a checkpoint has each of its tensors.

    Raises CompareError if it has no whole shards; CheckpointError if it has an index of them that cannot be read.
    """
    shards = _shards(checkpoint)
    if not shards:
        raise CompareError(
            f"{checkpoint} has no weight shards (*.safetensors).", hint="Download or convert its weights."
        )
    found: dict[str, Stored] = {}
    for shard in shards:
        try:
            found |= measure_tensors(shard)
        except (OSError, ValueError) as error:
            raise CompareError(
                f"{shard} is not a whole safetensors file: {error}.", hint="Download it again."
            ) from None
    return found


def _shards(checkpoint: Path) -> list[Path]:
    """Return the shards that a server loads."""
    index = checkpoint / INDEX
    if index.exists():
        try:
            return [checkpoint / name for name in shards_of(read_config(index))]
        except ValueError as error:
            raise CompareError(f"{index}: {error}.", hint="Download it again.") from None
    every = sorted(checkpoint.glob("*.safetensors"))
    # Mistral has its weights a second time, in its own form.
    return [shard for shard in every if not shard.name.startswith("consolidated")] or every


def choose_reference_device(
    tensors: Mapping[str, Stored],
    dtype: str,
    gpus: int,
    reference: str | None = "float32",
    *,
    together: bool = False,
) -> str:
    """Return where the reference model is to run, as torch names it.

    Parameters: `dtype`, the engine's; `gpus`, how many of them it is spread over, 0 where it runs on the CPU;
    `reference`, the dtype of the reference model, None where there is none; `together`, whether both are in memory at
    the same time and on the same device, and not one after the other.
    Raises CompareError if one of them does not fit, or both do not.
    """
    values = sum(tensor.values * _PACKED.get(tensor.dtype, 1) for tensor in tensors.values())
    engine = sum(
        tensor.values * _BYTES.get(dtype, 2) if tensor.dtype in _PLAIN else tensor.size for tensor in tensors.values()
    )
    other = _BYTES.get(reference or "", 4) * values if reference else 0
    if any(tensor.dtype not in _PLAIN for tensor in tensors.values()):
        dtype += " or as they are stored"
    why = f"{values:,} values in {dtype if engine > other else reference}"
    if together and reference:
        why = f"{values:,} values, in {dtype} for the engine and in {reference} for Transformers"
    if not gpus:
        needed = engine + other + _GIB if together and reference else max(engine, other)
        _require(needed + _PROCESSES, free_memory(), "memory", why)
        return "cpu"
    there = _gpu_memory(gpus)
    if together:
        _require(engine // gpus * 10 // 9 + other, there, "GPU memory", why)
        return "cuda"
    _require(engine // gpus * 10 // 9, there, "GPU memory", f"{values:,} values in {dtype}")
    if other + _PROCESSES <= there:
        return "cuda"
    _require(other + _PROCESSES, free_memory(), "memory", f"{why}, more than the GPU takes")
    return "cpu"


def free_memory(meminfo: Path = _MEMORY, cgroup: Path = _CGROUP) -> int:
    """Return how many bytes of memory are free, to this machine or to this container of it."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError):  # "max" is no number, and there may be no such limit
        most, used = (int((cgroup / f"memory.{name}").read_text(encoding="utf-8")) for name in ("max", "current"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text(encoding="utf-8").splitlines())
        free = min(free, most - used + int(stat.get("inactive_file", 0)))
    return free


def _gpu_memory(gpus: int) -> int:
    """Return how many bytes are free on each of the GPUs that an engine takes: the first ones that it sees."""
    words = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", ""):
        words.append(f"--id={','.join(visible.split(',')[:gpus])}")
    free = run(words).stdout.split()[:gpus]
    # A GPU that shares the machine's memory, as GB10 and Jetson do, says "[N/A]".
    return min(int(word) * 1024 * 1024 if word.isdigit() else free_memory() for word in free)


def _require(needed: int, there: int, what: str, why: str) -> None:
    if needed > there:
        raise CompareError(
            f"This needs about {needed / _GIB:.1f} GiB of {what} ({why}), and {max(there, 0) / _GIB:.1f} GiB are free.",
            hint="Run it on a machine that has more, or take a checkpoint with fewer layers.",
        )
