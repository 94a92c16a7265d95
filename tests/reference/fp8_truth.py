"""What a reference model says of an engine that serves a checkpoint which `fp8.py` has quantised."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from reference.cases import cases
from reference.fp8 import BLOCK, LARGEST, dequantise
from reference.greedy import Run, Verdict, judge_with


def judge_quantised(
    name: str, checkpoint: Path, runs: Sequence[Run], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[Verdict]:
    """Do what `reference.greedy.judge` does, with the weights that a quantised checkpoint stands for.

    In float32 nothing else is rounded: that is the truth. In another dtype the model rounds the inputs of quantised
    layers too, as upstream's kernels do: that is how near to the truth this format can be expected to come.
    """
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        plain = Path(folder) / "plain"
        layers = dequantise(checkpoint, plain)
        model = cases()[name].load(plain, dtype)
    if dtype != torch.float32:
        quantise_inputs(model, layers)
    return judge_with(name, model, runs, device)


def quantise_inputs(model: nn.Module, layers: Collection[str]) -> None:
    """Let the linear layers of these names take inputs that are rounded as `round_groups` does."""
    found = [layer for name, layer in model.named_modules() if name in layers]
    for layer in found:
        layer.register_forward_pre_hook(lambda _, inputs: (round_groups(inputs[0]),))


def round_groups(values: torch.Tensor) -> torch.Tensor:
    """Round values [..., size] to FP8, each 128 of a row by a scale of their own, and give them in their dtype."""
    groups = values.float().unflatten(-1, (-1, BLOCK))
    scales = groups.abs().amax(dim=-1, keepdim=True).clamp(min=1e-10) / LARGEST
    rounded = (groups / scales).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).float() * scales
    return rounded.flatten(-2).to(values.dtype)
