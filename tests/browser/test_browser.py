"""What a person sees who runs the tests on a machine without a browser."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from browser import browser
from browser.browser import NEXT_STEP


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave this machine without a browser and without a server to download one from; return its folder of programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "browsers"))
    monkeypatch.setenv("PLAYWRIGHT_DOWNLOAD_HOST", "http://127.0.0.1:9")
    return programs


def fail(*command: str) -> tuple[str, str]:
    """Return what a command that fails prints on standard output and on standard error."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 1
    return done.stdout, done.stderr


def add_browser(programs: Path, script: str) -> Path:
    path = programs / "chromium"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_without_a_browser_and_a_server_there_is_one_error(bare: Path) -> None:
    _, error = fail(browser.__file__)
    assert error.splitlines() == [
        "error: There is no browser on this machine, and playwright could not download one: "
        "connect ECONNREFUSED 127.0.0.1:9.",
        f"  {NEXT_STEP}",
    ]


def test_a_browser_that_does_not_start_is_named(bare: Path) -> None:
    path = add_browser(bare, "echo no screen >&2; exit 3")
    output, error = fail(browser.__file__)
    assert output == ""
    problem, hint = error.splitlines()
    assert problem.startswith(f"error: {path} does not start: ")
    assert hint == f"  {NEXT_STEP}"


def test_pytest_alone_ends_with_the_same_error(bare: Path) -> None:
    path = add_browser(bare, "exit 3")
    output, _ = fail("-m", "pytest", "-q", str(Path(browser.__file__).with_name("test_page.py")))
    assert f"{path} does not start: " in output
    assert NEXT_STEP in output
    assert "Traceback" not in output
    assert output.count("does not start") == 1
