"""`serve`, `test-engine` and `bench-gpu`, as they are called, up to the engine itself."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from overlay_tools import cli
from overlay_tools.commands import shared

from unit.conftest import Miniature


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_what_needs_no_gpu_runs_with_the_cpu_s_settings(
    mini_here: Miniature, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    python = program(mini_here.root / "python", 'echo "$@; engine: $SGLANG_USE_CPU_ENGINE"')
    monkeypatch.setattr(shared, "engine_environment", lambda *arguments, **options: nullcontext(python))
    (Path.cwd() / "tests" / "engine").mkdir(parents=True)
    assert cli.main(["test-engine", "1.0", "--verbose", "--", "-k", "parity", "tests/engine"]) == 0
    said = capfd.readouterr()
    assert "-m pytest -W default -k parity tests/engine; engine: 1" in said.out
    assert f"{python}' -m pytest -W default -k parity tests/engine\n  exit status 0 after" in said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "overlay"], "overlay is not a checkpoint: it has no config.json."),
        (["--image", "nothing.png"], "There is no file nothing.png."),
        (
            ["--image", "LICENSE"],
            "LICENSE cannot be shown: the tiny model that is served by default takes no pictures.",
        ),
        (["--image", "LICENSE", "--model", "text"], "LICENSE cannot be shown: text takes no pictures."),
    ],
)
def test_serve_refuses_what_it_cannot_serve_or_show_before_it_builds_anything(
    mini_here: Miniature, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mini_here.write("text/config.json", json.dumps({"model_type": "llama"}))
    assert cli.main(["serve", *words]) in (1, 2)
    assert said in capsys.readouterr().err
    assert not (mini_here.root / "dist").exists()
