"""A tiny checkpoint with random weights, to serve where no model is named."""

from __future__ import annotations

from pathlib import Path

from overlay_tools import console
from overlay_tools.subprocesses import run


def make_demo_model(root: Path, python: Path) -> Path:
    """Make a tiny LlamaLogitShaping checkpoint, once, and return its folder.

    Parameters: `root`, of the checkout; `python`, an interpreter that has torch and transformers.
    """
    model = root / ".nox" / "checkpoints" / "llama-logit-shaping"
    if not (model / "config.json").is_file():
        with console.step("Make a tiny llama-logit-shaping checkpoint"):
            run([python, root / "tests/reference/checkpoints.py", "llama-logit-shaping", model])
    return model
