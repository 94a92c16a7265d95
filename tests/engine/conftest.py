"""Tiny checkpoints and what their twins answer.

These tests run inside an environment where the wheel under test, its kernel wheel and pytest are installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import pytest
from overlay_tools import cpu_engine

os.environ.update(cpu_engine.ENV)  # before anything imports torch or sglang

from reference.checkpoints import make_checkpoint
from reference.greedy import Completion, complete, load_twin, random_prompts

from engine.harness import MAX_NEW_TOKENS, Model


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """Make a model from its kind and changes to its config.json; the same model for the same ones."""
    made: dict[str, Model] = {}

    def make(kind: str, **changes: object) -> Model:
        key = f"{kind} {changes}"
        if key not in made:
            path = tmp_path_factory.mktemp(kind)
            make_checkpoint(kind, path, changes)
            twin = load_twin(kind, path)

            def ask(prompt: Sequence[int]) -> Completion:
                answer = complete(twin, prompt, MAX_NEW_TOKENS)
                # A step that is nearly a tie in the twin would prove nothing about the engine.
                assert min(answer.margins) > 2e-3
                return answer

            made[key] = Model(kind=kind, path=path, answers=[ask(prompt) for prompt in random_prompts()], ask=ask)
        return made[key]

    return make
