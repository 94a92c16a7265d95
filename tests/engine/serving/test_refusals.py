"""A model of the overlay that cannot be served as it should be is refused, with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from overlay_tools.errors import ServeError
from packaging.version import Version
from reference.checkpoints import change_tensors, make_checkpoint, make_variant
from safetensors.torch import load_file, save_file

from engine.harness import PACKAGE, RELEASE, run_first, server, speculative

DRAFT = speculative(1)[0]

BREAK_IMPORT = """
import importlib.abc, sys

class Breaker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == BROKEN:
            raise ImportError("no such thing as a broken dependency")

sys.meta_path.insert(0, Breaker())
"""


def break_import(folder: Path) -> dict[str, str]:
    """Make a checkpoint, and give an environment in which its model's module cannot be imported."""
    make_checkpoint("llama-logit-shaping", folder)
    return broken_import(f"{PACKAGE}.models.llama_logit_shaping", folder)


def broken_import(module: str, folder: Path) -> dict[str, str]:
    """Give an environment in which a module cannot be imported."""
    return run_first(f"BROKEN = {module!r}\n" + BREAK_IMPORT, folder)


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


def break_ext_import(folder: Path) -> dict[str, str]:
    """Make a checkpoint of Qwen3-Next-Ext, and give an environment in which its module cannot be imported."""
    make_variant(folder, {})
    return broken_import(f"{PACKAGE}.models.qwen3_next_ext", folder)


def break_ext_draft(folder: Path) -> dict[str, str]:
    """Make a checkpoint whose draft alone has a tensor of another shape."""
    make_variant(folder, {})
    wrong = {"mtp.fc.weight": torch.zeros(128, 128)}
    change_tensors(folder, lambda tensors: tensors | wrong if wrong.keys() & tensors.keys() else tensors)
    return {}


def leave_out_ext_draft(folder: Path) -> dict[str, str]:
    """Make a checkpoint without a draft."""
    make_variant(folder, {})
    change_tensors(folder, lambda tensors: {k: v for k, v in tensors.items() if not k.startswith("mtp.")})
    return {}


def commit_no_state(folder: Path) -> dict[str, str]:
    """Make a checkpoint, and give an environment in which old releases draft without committing the model's state."""
    make_variant(folder, {})
    return {"SGLANG_ENABLE_SPEC_V2": "1"}


def refusal(broken: Callable[[Path], dict[str, str]], folder: Path) -> str:
    """Start the server of a broken checkpoint, which must end by itself; give what it printed."""
    environment = broken(folder)
    with (
        pytest.raises(ServeError, match=r"The server ended with status [^0]"),
        server(folder, folder / "log", DRAFT if broken in DRAFTING else None, environment),
    ):
        pytest.fail("it serves")
    return (folder / "log").read_text(errors="replace")


BROKEN = (
    break_import,
    break_tensors,
    break_config,
    break_ext_import,
    break_ext_draft,
    leave_out_ext_draft,
    *([commit_no_state] if Version("0.5.10") > RELEASE else []),
)
DRAFTING = (break_ext_draft, leave_out_ext_draft, commit_no_state)


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Start all broken servers, some at once, and give what each printed before it ended."""
    with ThreadPoolExecutor(max_workers=3) as pool:
        started = {
            broken.__name__: pool.submit(refusal, broken, tmp_path_factory.mktemp(broken.__name__)) for broken in BROKEN
        }
        return {name: future.result() for name, future in started.items()}


def test_model_that_cannot_be_imported(refusals: dict[str, str]) -> None:
    output = refusals["break_import"]
    assert "OverlayError: LlamaLogitShapingForCausalLM: cannot import" in output
    assert "no such thing as a broken dependency" in output


def test_checkpoint_with_wrong_tensors(refusals: dict[str, str]) -> None:
    output = refusals["break_tensors"]
    assert "model.layers.1.mlp.up_proj.weight: missing" in output
    assert "model.layers.7.mlp.up_proj.weight (model.safetensors): not a tensor of this model" in output
    assert "model.layers.0.self_attn.k_proj.weight (model.safetensors): its shape is (96, 128), not (64, 128)" in output


def test_checkpoint_with_a_bad_configuration(refusals: dict[str, str]) -> None:
    assert "config.json: logit_softcap must be a finite number above 0, not -1.0" in refusals["break_config"]


def test_derived_model_that_cannot_be_imported(refusals: dict[str, str]) -> None:
    output = refusals["break_ext_import"]
    assert "OverlayError: Qwen3NextExtForCausalLM: cannot import" in output
    assert "no such thing as a broken dependency" in output


def test_draft_with_a_wrong_tensor(refusals: dict[str, str]) -> None:
    output = refusals["break_ext_draft"]
    assert re.search(r"mtp\.fc\.weight \(model-0000\d-of-00002\.safetensors\): its shape is", output)


def test_checkpoint_without_the_draft_that_is_asked_for(refusals: dict[str, str]) -> None:
    output = refusals["leave_out_ext_draft"]
    assert "the checkpoint has no draft (mtp.* tensors); serve it without --speculative-algorithm" in output


if Version("0.5.10") > RELEASE:

    def test_drafts_that_would_be_wrong(refusals: dict[str, str]) -> None:
        assert "SGLANG_ENABLE_SPEC_V2 is set: in sglang 0.5." in refusals["commit_no_state"]
