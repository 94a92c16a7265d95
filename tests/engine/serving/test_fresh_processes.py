"""The models are there in a process that nothing has prepared: a new Python that unpickles a function, as Ray does."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

from reference.checkpoints import make_checkpoint, make_variant

from engine.harness import PACKAGE

ACTOR = """\
def resolve(path):
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_loader.utils import get_model_architecture

    config = ModelConfig(path)
    model, _ = get_model_architecture(config)
    print(f"{model.__module__}.{model.__name__} of {type(config.hf_config).__module__}")
"""
UNPICKLE = "import pickle, sys; function, *given = pickle.load(sys.stdin.buffer); function(*given)"


def resolved(checkpoint: Path, folder: Path) -> str:
    """Ask a new Python which class serves a checkpoint, and of which module its configuration is."""
    (folder / "actor.py").write_text(ACTOR, encoding="utf-8")
    path = os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])
    # A tuple of the function, by its name, and what it is given, as pickle writes it: this process cannot import it.
    sent = b"(cactor\nresolve\n" + pickle.dumps(str(checkpoint), protocol=0).removesuffix(b".") + b"t."
    done = subprocess.run(
        [sys.executable, "-c", UNPICKLE],
        input=sent,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout.decode().splitlines()[-1]


def test_a_model_of_a_known_type_is_ours(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    make_checkpoint("llama-logit-shaping", checkpoint)
    found = resolved(checkpoint, tmp_path)
    assert found.startswith(f"{PACKAGE}.models.llama_logit_shaping.LlamaLogitShapingForCausalLM of ")


def test_a_model_of_a_type_of_ours_is_ours(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    make_variant(checkpoint, {})
    assert resolved(checkpoint, tmp_path) == (
        f"{PACKAGE}.models.qwen3_next_ext.Qwen3NextExtForCausalLM of {PACKAGE}.configs.qwen3_next_ext"
    )
