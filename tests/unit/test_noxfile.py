"""What the sessions of noxfile.py do themselves."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
from nox.command import CommandFailed

from unit.conftest import REPOSITORY


@pytest.fixture(scope="module")
def noxfile() -> Any:  # noqa: ANN401  # a module
    spec = importlib.util.spec_from_file_location("own_noxfile", REPOSITORY / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("bad", [(), ("mypy",), ("ruff check", "lint-imports")])
def test_each_linter_runs_whatever_the_others_find(noxfile: Any, bad: tuple[str, ...]) -> None:  # noqa: ANN401
    ran: list[str] = []
    said: list[str] = []

    def run(*words: str, **_: object) -> None:
        ran.append(" ".join(words[words.index("attached") + 1 :]))
        if ran[-1] in bad:
            raise CommandFailed

    def ignore(*_: object) -> None:
        pass

    noxfile.lint.func(SimpleNamespace(posargs=[], install=ignore, log=ignore, run=run, error=said.append))
    assert ran == ["ruff check", "ruff format --check", "mypy", "lint-imports", "overlay-tools lint-patches"]
    assert said == ([f"{len(bad)} of 5 found faults, shown above: {', '.join(bad)}"] if bad else [])
