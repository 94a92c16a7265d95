"""Which device an engine runs on: a CUDA GPU where there is one, unless the user hides it or asks for the CPU."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass

from overlay_tools.errors import ToolError
from overlay_tools.subprocesses import run


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """What an engine is to run on, and why."""

    gpu: bool
    why: str


def choose_device() -> Device:
    """Return the device that upstream's engine would find.

    `SGLANG_USE_CPU_ENGINE` means the CPU if it is "1" and nothing otherwise, as upstream reads it. Of
    `CUDA_VISIBLE_DEVICES` only the first entry matters: CUDA takes the GPUs before the first one that there is not.
    """
    if os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        return Device(gpu=False, why="SGLANG_USE_CPU_ENGINE is 1")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not re.match(r"\s*(\+?\d|GPU-|MIG-)", visible):
        return Device(gpu=False, why=f"CUDA_VISIBLE_DEVICES is {visible!r}, which hides every GPU")
    gpus = _gpus()
    if not gpus:
        return Device(gpu=False, why="this machine has no GPU that nvidia-smi lists")
    if visible is not None and not _has(gpus, visible.split(",")[0].strip()):
        return Device(gpu=False, why=f"CUDA_VISIBLE_DEVICES is {visible!r}, and nvidia-smi lists no such GPU")
    return Device(gpu=True, why=f"nvidia-smi lists {sum(line.startswith('GPU ') for line in gpus)}")


def _gpus() -> list[str]:
    """Return a line for each GPU, and for each instance that one is split into; none without a driver that answers."""
    driver = shutil.which("nvidia-smi")
    try:
        lines = run([driver, "-L"], check=False).stdout.splitlines() if driver else []
    except ToolError:  # it is there and cannot be run
        return []
    return [line.strip() for line in lines] if any(line.startswith("GPU ") for line in lines) else []


def _has(gpus: list[str], entry: str) -> bool:
    """Tell whether an entry of `CUDA_VISIBLE_DEVICES`, an index or the beginning of a UUID, is among the GPUs."""
    if entry.lstrip("+").isdigit():
        return any(line.startswith(f"GPU {int(entry)}:") for line in gpus)
    return any(f"(UUID: {entry}" in line for line in gpus)
