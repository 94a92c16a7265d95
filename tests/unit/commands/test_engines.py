"""`serve`, `test-engine` and `bench-gpu`, as they are called, up to the engine itself."""

from __future__ import annotations

import json
import os
import shlex
from contextlib import nullcontext
from pathlib import Path

import pytest
from overlay_tools import cli
from overlay_tools.commands import shared
from overlay_tools.upstream.lockfile import THIS_PYTHON

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
            "LICENSE cannot be shown: SmolLM2-135M-Instruct takes no pictures.",
        ),
        (["--image", "LICENSE", "--model", "text"], "LICENSE cannot be shown: text takes no pictures."),
        (["--model", "none.gguf"], "There is no file none.gguf."),
        (["--model", "text/config.gguf"], "text/config.gguf is not a GGUF file, whatever its name says."),
        (["--", "--model-path", "text"], "--model-path cannot be passed on to the server."),
        (["--", "--model", "text"], "Give --model CHECKPOINT before the `--`."),
        (["1.0", "--", "--tp-size", "2", "--host=0.0.0.0"], "--host cannot be passed on to the server."),
        (["--", "--api-key", "secret"], "--api-key cannot be passed on to the server."),
    ],
)
def test_serve_refuses_what_it_cannot_serve_or_show_before_it_builds_anything(
    mini_here: Miniature, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mini_here.write("text/config.json", json.dumps({"model_type": "llama"}))
    mini_here.write("text/config.gguf", "GGU")
    assert cli.main(["serve", *words]) in (1, 2)
    assert said in capsys.readouterr().err
    assert not (mini_here.root / "dist").exists()


def test_serve_prints_nothing_for_a_release_that_is_not_locked(
    mini_here: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", "9.9", "--print"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "holds no release '9.9'" in said.err


@pytest.mark.parametrize(
    ("model", "named"), [("text", "text"), ("Owner/Name-1.5", "Owner/Name-1.5"), (None, "SmolLM2"), ("a.gguf", "gguf")]
)
def test_serve_prints_what_it_would_run_and_runs_nothing(
    mini_here: Miniature,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str | None,
    named: str,
) -> None:
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    mini_here.write("text/config.json", "{}")
    mini_here.write("text/model.safetensors", "tiny")
    mini_here.write("a.gguf", "GGUF and more")
    before = mini_here.content()
    words = ["1.1", "--port", "31000", "--print", *(["--model", model] if model else [])]
    assert cli.main(["serve", *words, "--", "--lora-paths", "a b", "--device", "cuda"]) == 0
    line = capsys.readouterr().out
    assert mini_here.content() == before
    variables = [word for word in shlex.split(line) if "=" in word and not word.startswith(("-", "{"))]
    *_, python, _, module, _, path, _, host, _, port = shlex.split(line)[: len(variables) + 9]
    assert "NO_PROXY=127.0.0.1,localhost" in variables
    assert f"OMP_NUM_THREADS={1 if model == 'text' else len(os.sched_getaffinity(0))}" in variables
    assert "SGLANG_USE_CPU_ENGINE=1" not in variables  # it is set already
    assert python == str(mini_here.root / ".nox" / "engines" / f"1.1-py{THIS_PYTHON}" / "bin" / "python")
    assert (module, host, port) == ("sglang.launch_server", "127.0.0.1", "31000")
    assert named in path
    assert line.endswith("--lora-paths 'a b' --device cuda\n")
