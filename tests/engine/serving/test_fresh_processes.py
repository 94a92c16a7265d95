"""The models are there in a process that nothing has prepared: a new Python that unpickles a function, as Ray does."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from reference.cases import make_checkpoint

from engine.harness import OURS, ours

ACTOR = """\
def resolve(paths, are_embeddings):
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_loader.utils import get_model_architecture

    for path, is_embedding in zip(paths.splitlines(), are_embeddings.splitlines(), strict=True):
        config = ModelConfig(path, is_embedding=is_embedding == "True")
        model, _ = get_model_architecture(config)
        print("resolved", f"{model.__module__}.{model.__name__}", type(config.hf_config).__module__)
"""
UNPICKLE = "import pickle, sys; function, *given = pickle.load(sys.stdin.buffer); function(*given)"


def resolved(checkpoints: Sequence[Path], are_embeddings: Sequence[bool], folder: Path) -> list[list[str]]:
    """Ask a new Python which class serves each checkpoint, and of which module its configuration is."""
    (folder / "actor.py").write_text(ACTOR, encoding="utf-8")
    path = os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])
    # A tuple of the function, by its name, and what it is given, as pickle writes it: this process cannot import it.
    words = ("\n".join(map(str, checkpoints)), "\n".join(map(str, are_embeddings)))
    given = b"".join(pickle.dumps(value, protocol=0).removesuffix(b".") for value in words)
    sent = b"(cactor\nresolve\n" + given + b"t."
    done = subprocess.run(
        [sys.executable, "-c", UNPICKLE],
        input=sent,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        check=True,
    )
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    return [words for word, *words in filter(None, lines) if word == "resolved"]


def test_each_model_of_ours_is_served_by_our_class(tmp_path: Path) -> None:
    rows = [
        next(row for row in ours("overlay_registry").MODELS if row.architecture == case.architecture)
        for case in OURS.values()
    ]
    for name in OURS:
        make_checkpoint(name, tmp_path / name)
    found = resolved([tmp_path / name for name in OURS], [not row.generates for row in rows], tmp_path)
    assert [model for model, _ in found] == [row.model.replace(":", ".") for row in rows]
    # A row without a configuration has that of another model of ours, or of upstream's.
    modules = [row.config and row.config.partition(":")[0] for row in rows]
    assert [config if module else None for module, (_, config) in zip(modules, found, strict=True)] == modules
