"""How SGLang's engine is run on a machine without a GPU: its environment and arguments, in this one place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

ENV: dict[str, str] = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "CUDA_VISIBLE_DEVICES": "",  # upstream takes a GPU that it sees all the same
    "SGLANG_MAMBA_CONV_DTYPE": "float32",  # bfloat16 otherwise, whatever dtype the model has
    "SGLANG_DISABLE_CUDNN_CHECK": "1",  # to 0.5.9, multimodal models ask for a newer cuDNN, for which a CPU has no use
    "TORCHDYNAMO_DISABLE": "1",  # compiling takes minutes and gains nothing on models of this size
    "OMP_NUM_THREADS": "1",  # of tiny matrices: more threads only wait for each other
    "PYTHONDONTWRITEBYTECODE": "",  # each start imports 10,000 modules in three processes: minutes without .pyc files
}

ARGS: dict[str, object] = {
    "device": "cpu",
    "dtype": "float32",
    "attention_backend": "torch_native",
    "disable_cuda_graph": True,
    "mem_fraction_static": 0.2,
    "max_total_tokens": 8192,
    "max_running_requests": 8,
    "sleep_on_idle": True,  # an idle engine would otherwise keep a core busy
    "random_seed": 1,
    "skip_server_warmup": True,
}

# What a release pins and the package index has only as a placeholder, which fetches the real thing from its vendor when
# it is installed. The engine never imports it without a GPU, so it is left out of a CPU environment.
LEFT_OUT = {">=0.5.18,<0.5.23": ("cuda-tile",)}


_TINY = 64 << 20  # bytes of weights, below which matrices are too small to be shared by threads


def usual(checkpoint: Path, *, gpu: bool) -> tuple[Mapping[str, object], Mapping[str, str]]:
    """Return the arguments and the environment that an engine is given here; on a GPU, upstream's own are right.

    Parameters: `checkpoint`, the folder to be served, which need not be there yet.
    """
    if gpu:
        return {}, {}
    return ARGS, {**ENV, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or _threads(checkpoint)}


def _threads(checkpoint: Path) -> str:
    """Return how many threads compute: one a core, unless a checkpoint is known to be tiny."""
    sizes = [path.stat().st_size for path in checkpoint.glob("*.safetensors")]
    return ENV["OMP_NUM_THREADS"] if sizes and sum(sizes) < _TINY else str(len(os.sched_getaffinity(0)))


def extra_buffer(version: str) -> dict[str, object]:
    """Return the argument with which a release keeps states of linear attention at the ends of chunks."""
    old = Version(version) < Version("0.5.14")
    return {"mamba_scheduler_strategy" if old else "mamba_radix_cache_strategy": "extra_buffer"}


def drafts(version: str, steps: int, *, state: bool = True) -> tuple[dict[str, object], dict[str, str]]:
    """Return a release's arguments and environment for drafts of `steps` tokens by the model's own head.

    Parameters: `state`, whether the model has one beside its KV cache; `extra_buffer` is refused without.
    Up to 0.5.9, the second version of speculative decoding never commits Qwen3-Next's state: it stays off there.
    """
    arguments: dict[str, object] = {
        "speculative_algorithm": "NEXTN",
        "speculative_num_steps": steps,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": steps + 1,
    }
    if Version(version) < Version("0.5.10"):
        return arguments, {}
    return arguments | (extra_buffer(version) if state else {}), {"SGLANG_ENABLE_SPEC_V2": "1"}


def vectors(version: str) -> dict[str, object]:
    """Return a release's arguments for a model that gives vectors.

    Before 0.5.11, where more texts are asked for at once than may run, the others wait for ever with overlapped
    scheduling. Models of the overlay are served without it there in any case.
    """
    return {"disable_overlap_schedule": True} if Version(version) < Version("0.5.11") else {}


def of_release(table: Mapping[str, tuple[str, ...]], version: str) -> tuple[str, ...]:
    """Return what a table, whose keys are ranges of releases, has for one release."""
    found = (value for range_, value in table.items() if SpecifierSet(range_).contains(version, prereleases=True))
    return next(found, ())


def flags(arguments: Mapping[str, object]) -> list[str]:
    """Write keyword arguments of `sglang.Engine` as command-line flags of `sglang.launch_server`.

    True becomes a bare flag; False and None leave the flag out.
    """
    words: list[str] = []
    for name, value in arguments.items():
        if value is None or value is False:
            continue
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(str(value))
    return words
