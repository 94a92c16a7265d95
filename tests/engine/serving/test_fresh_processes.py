"""The models are there in a process that nothing has prepared: a new Python that unpickles a function, as Ray does."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from reference.cases import make_checkpoint

from engine.harness import OURS, ours

ACTOR = """\
def resolve(path, is_embedding):
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_loader.utils import get_model_architecture

    config = ModelConfig(path, is_embedding=is_embedding)
    model, _ = get_model_architecture(config)
    print(f"{model.__module__}.{model.__name__} of {type(config.hf_config).__module__}")
"""
UNPICKLE = "import pickle, sys; function, *given = pickle.load(sys.stdin.buffer); function(*given)"


def resolved(checkpoint: Path, folder: Path, is_embedding: bool = False) -> str:
    """Ask a new Python which class serves a checkpoint, and of which module its configuration is."""
    (folder / "actor.py").write_text(ACTOR, encoding="utf-8")
    path = os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])
    # A tuple of the function, by its name, and what it is given, as pickle writes it: this process cannot import it.
    given = b"".join(pickle.dumps(value, protocol=0).removesuffix(b".") for value in (str(checkpoint), is_embedding))
    sent = b"(cactor\nresolve\n" + given + b"t."
    done = subprocess.run(
        [sys.executable, "-c", UNPICKLE],
        input=sent,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout.decode().splitlines()[-1]


@pytest.mark.parametrize("name", OURS)
def test_a_model_of_ours_is_served_by_our_class(name: str, tmp_path: Path) -> None:
    row = next(row for row in ours("overlay_registry").MODELS if row.architecture == OURS[name].architecture)
    checkpoint = tmp_path / "checkpoint"
    make_checkpoint(name, checkpoint)
    model, _, config = resolved(checkpoint, tmp_path, not row.generates).partition(" of ")
    assert model == row.model.replace(":", ".")
    assert row.config is None or config == row.config.partition(":")[0]
