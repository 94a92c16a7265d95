"""Fixtures for the tests of the real engine: tiny checkpoints, what their twins answer, and servers.

They run inside an environment where the wheel under test, its kernel wheel and pytest are installed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from overlay_tools import cpu_engine

os.environ.update(cpu_engine.ENV)  # before anything imports sglang, or numbers of threads are read

from reference.checkpoints import make_checkpoint
from reference.greedy import Completion, complete, encode, load_twin, random_prompts

MAX_NEW_TOKENS = 24
TEXT_PROMPT = "The quick brown fox jumps over"


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A checkpoint, its twin's greedy answers to 16 random prompts, and the twin itself to be asked more."""

    path: Path
    answers: list[Completion]
    ask: Callable[[list[int]], Completion]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """Make a model by its kind and changes to its config.json, once a session."""
    made: dict[str, Model] = {}

    def make(name: str, **changes: object) -> Model:
        key = f"{name} {changes}"
        if key not in made:
            path = tmp_path_factory.mktemp(name)
            make_checkpoint(name, path, changes)
            twin = load_twin(name, path)
            made[key] = Model(
                path=path,
                answers=[complete(twin, prompt, MAX_NEW_TOKENS) for prompt in random_prompts()],
                ask=lambda prompt: complete(twin, prompt, MAX_NEW_TOKENS),
            )
            # A step that is nearly a tie in the twin would prove nothing about the engine.
            assert min(margin for answer in made[key].answers for margin in answer.margins) > 2e-3
        return made[key]

    return make


@contextmanager
def server(path: Path, *, environment: Mapping[str, str] = {}, **arguments: object) -> Iterator[tuple[str, Any]]:
    ...
