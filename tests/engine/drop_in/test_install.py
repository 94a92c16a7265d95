"""The wheel among its dependencies: nothing conflicts, nothing is pulled in again, nothing is left behind."""

from __future__ import annotations

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from overlay_tools.engines import engine_config
from overlay_tools.engines.loopback import without_proxy

ROOT = Path(__file__).parents[3]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
UPSTREAM = version("sglang").partition("+")[0]
LEFT_OUT = engine_config.of_release(engine_config.LEFT_OUT, UPSTREAM)
UV = [sys.executable, "-m", "uv", "pip"]


def run(*words: str | Path) -> str:
    env = without_proxy({**os.environ, "PIP_CONFIG_FILE": os.devnull})  # pip's constraints here are not uv's
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel() -> Path:
    this = f"cp{sys.version_info.major}{sys.version_info.minor}-"
    paths = (ROOT / "dist").glob(f"sglang-{version('sglang')}-*.whl")
    (path,) = (path for path in paths if this in path.name or "-py3-" in path.name)
    return path


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Serve dist/ as a file server does, without ranges."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(ROOT / "dist")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_no_requirement_is_broken() -> None:
    for check in ([*PIP, "check"], [*UV, "check", "--python", sys.executable]):
        said = subprocess.run(check, capture_output=True, text=True, check=False)
        complaints = [line for line in (said.stdout + said.stderr).splitlines() if "requires" in line]
        # More than one distribution may require what was left out; nothing else may be missed.
        assert all(any(name in line for name in LEFT_OUT) for line in complaints), said.stdout + said.stderr
        assert all(any(name in line for line in complaints) for name in LEFT_OUT), said.stdout + said.stderr
        assert said.returncode == (1 if LEFT_OUT else 0)


def test_asking_for_upstreams_version_changes_nothing() -> None:
    words = [*(["--no-deps"] if LEFT_OUT else []), f"sglang=={UPSTREAM}"]
    plan = run(*PIP, "install", "--quiet", "--dry-run", "--no-index", "--report", "-", *words)
    assert json.loads(plan)["install"] == []
    said = run(*UV, "install", "--dry-run", "--offline", "--python", sys.executable, *words)
    assert "Would make no changes" in said


@pytest.mark.parametrize("source", ["disk", "http"])
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_it_installs_and_leaves_nothing_behind(
    tmp_path: Path, wheel: Path, address: str, installer: str, source: str
) -> None:
    python = tmp_path / "env" / "bin" / "python"
    run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, tmp_path / "env")
    what = str(wheel) if source == "disk" else f"{address}/{wheel.name.replace('+', '%2B')}"
    before = {path for path in (tmp_path / "env").rglob("*") if path.name != ".lock"}
    if installer == "pip":
        compiling = ["--compile"] if source == "disk" else ["--no-compile"]
        run(
            *PIP,
            "--python",
            python,
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--no-cache-dir",
            *compiling,
            what,
        )
    else:
        run(*UV, "install", "--quiet", "--no-deps", "--no-cache", "--python", python, what)
    (module,) = (tmp_path / "env").glob("lib/python*/site-packages/sglang/_version.py")
    assert version("sglang") in module.read_text()
    assert (tmp_path / "env" / "bin" / "sglang").exists()
    if installer == "pip":
        run(*PIP, "--python", python, "uninstall", "--quiet", "--yes", "sglang")
    else:
        run(*UV, "uninstall", "--quiet", "--python", python, "sglang")
    assert {path for path in (tmp_path / "env").rglob("*") if path.name != ".lock"} == before
