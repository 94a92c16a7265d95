"""A model of the overlay that cannot be served as it should be is refused, with the reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from overlay_tools.errors import ServeError
from reference.checkpoints import make_checkpoint
from safetensors.torch import load_file, save_file

from engine.harness import server

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


def refusal(broken: Callable[[Path], dict[str, str]], folder: Path) -> str:
    """Start the server of a broken checkpoint, which must end by itself; give what it printed."""
    environment = broken(folder)
    with (
        pytest.raises(ServeError, match=r"The server ended with status [^0]"),
        server(folder, folder / "log", env=environment),
    ):
        pytest.fail("it serves")
    return (folder / "log").read_text(errors="replace")


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Start all broken servers at once, and give what each printed before it ended."""
    with ThreadPoolExecutor() as pool:
        started = {
            broken.__name__: pool.submit(refusal, broken, tmp_path_factory.mktemp(broken.__name__))
            for broken in (break_import, break_tensors, break_config)
        }
        return {name: future.result() for name, future in started.items()}


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
