"""A tiny checkpoint with random weights, to serve where no model is named."""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import FileLock

from overlay_tools import console
from overlay_tools.subprocesses import run


def make_demo_model(root: Path, python: Path) -> Path:
    """Make a tiny checkpoint of the first of the overlay's models, once, and return its folder.

    Parameters: `root`, of the checkout; `python`, an interpreter that has torch and transformers.
    """
    model = root / ".nox" / "checkpoints" / "demo"
    part = model.with_name(f"{model.name}.part")
    model.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(model.with_name(f"{model.name}.lock")):  # another command may make it now, or may have been killed
        if not (model / "config.json").is_file():
            with console.step("Make a tiny checkpoint"):
                for left in (model, part):
                    shutil.rmtree(left, ignore_errors=True)
                run([python, root / "tests/reference/checkpoints.py", part])
                part.replace(model)
    return model
