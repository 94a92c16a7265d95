"""Adapters (LoRA) of random weights, and checkpoints into which they are merged."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from reference.checkpoints import change_tensors

RANK, ALPHA = 4, 8

Adapter = dict[str, tuple[torch.Tensor, torch.Tensor]]


def draw(checkpoint: Path, modules: tuple[str, ...], seed: int, size: float = 0.1) -> Adapter:
    """Draw an adapter of all modules with these names: each one's two factors, [rank, inputs] and [outputs, rank].

    Parameters: `size`, the standard deviation of the second factors' values.
    """
    random = torch.Generator().manual_seed(seed)
    shapes: dict[str, torch.Size] = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        shapes |= {name: tensor.shape for name, tensor in load_file(shard).items()}
    return {
        module: (
            torch.randn(RANK, shape[1], generator=random) * shape[1] ** -0.5,
            torch.randn(shape[0], RANK, generator=random) * size,
        )
        for name, shape in sorted(shapes.items())
        if (module := name.removesuffix(".weight")).endswith(modules) and "model.layers." in module
    }


def write(folder: Path, adapter: Adapter, modules: tuple[str, ...]) -> Path:
    """Write an adapter as PEFT does."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(modules), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tensors = {
        f"base_model.model.{module}.lora_{'AB'[i]}.weight": factor
        for module, factors in adapter.items()
        for i, factor in enumerate(factors)
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def merge(checkpoint: Path, adapter: Adapter) -> None:
    """Add an adapter to a checkpoint's weights: each becomes W + alpha / rank * B A (arXiv:2106.09685, section 4.1)."""

    def merged(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for module, (a, b) in adapter.items():
            if (name := f"{module}.weight") in tensors:
                tensors[name] = tensors[name] + ALPHA / RANK * (b @ a)
        return tensors

    change_tensors(checkpoint, merged)
