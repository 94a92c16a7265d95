"""A model of the overlay that cannot be served as it should be is refused, with the reason."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from reference.checkpoints import make_checkpoint
from safetensors.torch import load_file, save_file

from engine.harness import running_server

BREAK_IMPORT = """
import importlib.abc, sys

class Breaker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "sglang.srt.models.llama_logit_shaping":
            raise ImportError("no such thing as a broken dependency")

sys.meta_path.insert(0, Breaker())
"""


def break_import(folder: Path) -> dict[str, str]:
    """Make a checkpoint, and give an environment in which its model's module cannot be imported."""
    make_checkpoint("llama-logit-shaping", folder)
    (folder / "sitecustomize.py").write_text(BREAK_IMPORT, encoding="utf-8")  # every Python process imports this first
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def break_tensors(folder: Path) -> dict[str, str]:
    """Make a checkpoint with one tensor too few, one too many and one of another shape."""
    make_checkpoint("llama-logit-shaping", folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(256, 128)
    tensors["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(96, 128)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return {}


def break_config(folder: Path) -> dict[str, str]:
    """Make a checkpoint whose soft cap is below zero."""
    make_checkpoint("llama-logit-shaping", folder, {"logit_softcap": -1.0})
    return {}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Start all broken servers at once; wait until each has died by itself; give what each printed."""
    printed = {}
    with ExitStack() as stack:
        started = {}
        for broken in (break_import, break_tensors, break_config):
            folder = tmp_path_factory.mktemp(broken.__name__)
            environment = broken(folder)
            process, _ = stack.enter_context(running_server(folder, folder / "log", **environment))
            started[broken.__name__] = process, folder / "log"
        for name, (process, log) in started.items():
            try:
                status = process.wait(timeout=300)
            except subprocess.TimeoutExpired:
                pytest.fail(f"{name}: the server is still running:\n{log.read_text(errors='replace')[-5000:]}")
            printed[name] = log.read_text(errors="replace")
            assert status != 0, printed[name]
    return printed


def test_model_that_cannot_be_imported(refusals: dict[str, str]) -> None:
    output = refusals["break_import"]
    assert "OverlayError: LlamaLogitShapingForCausalLM: cannot import" in output
    assert "no such thing as a broken dependency" in output


def test_checkpoint_with_wrong_tensors(refusals: dict[str, str]) -> None:
    output = refusals["break_tensors"]
    assert "model.layers.1.mlp.up_proj.weight: missing" in output
    assert "model.layers.7.mlp.up_proj.weight: not a tensor of this model" in output
    assert "model.layers.0.self_attn.k_proj.weight: its shape is (96, 128), not (64, 128)" in output


def test_checkpoint_with_a_bad_configuration(refusals: dict[str, str]) -> None:
    assert "config.json: logit_softcap must be a finite number above 0, not -1.0" in refusals["break_config"]
