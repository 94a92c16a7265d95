"""The models are there in every process of a server, however many and of whatever kind these are."""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from engine.harness import PACKAGE, RELEASE, SAMPLING, SERVED, STOCK, Model, assert_answers, post, server
from packaging.version import Version

from plugin.names import DISTRIBUTION, WHEEL

PLUGINS_OFF = {"SGLANG_PLUGINS": "none"}


def test_sglang_is_upstreams_own() -> None:
    assert "+" not in version("sglang")


# Where a processor is asked for by each rank of each copy of the model. Until then copies share those of a rank.
BOUND = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"} if Version("0.5.19") <= RELEASE else {}


@pytest.mark.parametrize("arguments", [{"tokenizer_worker_num": 2}, {"dp_size": 2}], ids=str)
def test_a_server_of_more_processes_matches_the_reference_model(
    arguments: dict[str, object], models: dict[str, Model], tmp_path: Path
) -> None:
    model = models[SERVED[0]]
    with server(model.path, tmp_path / "log", arguments, BOUND) as running:
        prompts = [answer.prompt for answer in model.answers]
        # One at a time, so that each goes to the worker whose turn it is.
        outputs = [
            post(running.url, "/generate", input_ids=prompt, sampling_params=SAMPLING, return_logprob=True)
            for prompt in prompts
        ]
    assert_answers(outputs, model.answers)


def test_a_stock_model_starts_as_quickly_as_without_the_plugin(
    models: dict[str, Model], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds: dict[str, list[float]] = {"with the plugin": [], "without": []}
    for repeat in range(3):
        for name, environment in (("with the plugin", {}), ("without", PLUGINS_OFF)):
            started = time.monotonic()
            with server(models[STOCK].path, tmp_path / f"{name} {repeat}", env=environment):
                seconds[name].append(time.monotonic() - started)
    with capsys.disabled():
        print(f"\nsglang {version('sglang')}, seconds to health:", json.dumps(seconds))
    assert statistics.median(seconds["with the plugin"]) < statistics.median(seconds["without"]) + 4


def run(*words: str | Path) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def digests(folder: Path) -> dict[str, str]:
    """Give the sha256 of every file in a folder by its path there."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_uninstalling_leaves_upstream_as_it_was(tmp_path: Path) -> None:
    (plugin,) = (Path(__file__).parents[2] / "dist").glob(f"{WHEEL}-{version(DISTRIBUTION)}-*.whl")
    python = tmp_path / "env" / "bin" / "python"
    uv = [sys.executable, "-m", "uv"]
    site = Path(str(distribution("sglang").locate_file("")))
    run(*uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "env")
    (folder,) = (tmp_path / "env").glob("lib/python*/site-packages")
    for name in ("sglang", f"sglang-{version('sglang')}.dist-info"):
        shutil.copytree(site / name, folder / name)
    before = digests(folder)
    run(*uv, "pip", "install", "--quiet", "--no-deps", "--no-cache", "--python", python, plugin)
    installed = digests(folder)
    assert {name.split("/")[0] for name in installed.keys() - before.keys()} == {
        PACKAGE,
        f"{PACKAGE}.pth",
        f"{PACKAGE}_start.py",
        f"{plugin.name.partition('-py3')[0]}.dist-info",
    }
    assert {name: installed[name] for name in before} == before
    run(*uv, "pip", "uninstall", "--quiet", "--python", python, DISTRIBUTION)
    assert digests(folder) == before
