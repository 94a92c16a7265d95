"""A model of the overlay that cannot be served as it should be is refused, with the reason."""

from __future__ import annotations

import os
import subprocess
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


def refusal(path: Path, log: Path, **environment: str) -> str:
    """Start a server that must die by itself; give what it printed."""
    with running_server(path, log, **environment) as (process, _):
        try:
            status = process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the server is still running:\n{log.read_text(errors='replace')[-5000:]}")
    assert status != 0
    return log.read_text(errors="replace")


def test_model_that_cannot_be_imported(tmp_path: Path) -> None:
    make_checkpoint("llama-logit-shaping", tmp_path / "model")
    # Every process of the server imports this module first of all.
    (tmp_path / "sitecustomize.py").write_text(BREAK_IMPORT, encoding="utf-8")
    search = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    output = refusal(tmp_path / "model", tmp_path / "log", PYTHONPATH=search)
    assert "OverlayError: LlamaLogitShapingForCausalLM: cannot import" in output
    assert "no such thing as a broken dependency" in output


def test_checkpoint_with_wrong_tensors(tmp_path: Path) -> None:
    make_checkpoint("llama-logit-shaping", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(256, 128)
    tensors["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(96, 128)
    save_file(tensors, file, metadata={"format": "pt"})
    output = refusal(tmp_path, tmp_path / "log")
    assert "model.layers.1.mlp.up_proj.weight: missing" in output
    assert "model.layers.7.mlp.up_proj.weight: not a tensor of this model" in output
    assert "model.layers.0.self_attn.k_proj.weight: its shape is (96, 128), not (64, 128)" in output


def test_checkpoint_with_a_bad_configuration(tmp_path: Path) -> None:
    make_checkpoint("llama-logit-shaping", tmp_path, {"logit_softcap": -1.0})
    assert "config.json: logit_softcap must be a finite number above 0, not -1.0" in refusal(tmp_path, tmp_path / "log")
