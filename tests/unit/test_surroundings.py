"""Where a checkout lies, and what a user's environment says to Python: what is built and tested is the same."""

from __future__ import annotations

import os
import shutil
import string
import subprocess
import sys
from pathlib import Path

import pytest
from overlay_tools import cli
from overlay_tools.engines.venv import open_environment
from overlay_tools.surroundings import set_aside, users_python
from overlay_tools.wheels.builder import build_kernel
from overlay_tools.wheels.verify import verify_wheel

from unit.conftest import PATCH, REPOSITORY, Miniature, make_miniature, upstream_files

# What an interpreter of a path stumbles over stands after a blank too, where some comments begin.
ODD = f"é 日 #1 $HOME ${{HOME}} %20 ~ {string.punctuation.replace('/', '').replace(':', '')}"
HERE = ("--python", "3.11", "--platform", "x86_64")
PRINTED = "PYTHONPATH=${PYTHONPATH-} PYTHONHOME=${PYTHONHOME-} PYTHONOPTIMIZE=${PYTHONOPTIMIZE-}"


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Miniature:
    """Return a project in a folder whose name has every printable character that it may have."""
    mini = make_miniature(tmp_path / ODD, monkeypatch)
    monkeypatch.chdir(mini.root)
    return mini


def test_every_command_works_whatever_the_path_is(
    odd: Miniature, mini: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd.patch.write_text(PATCH.replace("<=1.1", "<=1.2"))
    release = odd.publish("1.2", upstream_files("1.2"))
    monkeypatch.setattr("overlay_tools.upstream.asked.query_release", lambda version, index: release)
    odd.write("ci/results.json", "[]\n")
    assert cli.main(["build", "1.0", *HERE]) == 0
    (wheel,) = (odd.root / "dist").glob("sglang-*.whl")
    assert verify_wheel(wheel).differences == []
    mini.patch.write_text(odd.patch.read_text())
    assert wheel.read_bytes() == mini.build().path.read_bytes()
    monkeypatch.chdir(odd.root)
    for words in (["plugin"], ["status"], ["lint-patches"], ["verify", str(wheel)], ["edit", "1.0"]):
        assert cli.main(words) == 0, words
    tree = odd.root / ".nox" / "worktrees" / "1.0"
    (tree / "sglang" / "new.py").write_text("NEW = 1\n")
    for git in (["add", "--all"], ["-c", "user.name=me", "-c", "user.email=me@here", "commit", "--quiet", "-m", "x"]):
        subprocess.run(["git", *git], cwd=tree, check=True)
    assert cli.main(["export", "1.0", "--yes"]) == 0
    assert (odd.root / "overlay/sglang/new.py").read_text() == "NEW = 1\n"
    assert cli.main(["port", "1.2"]) == 0
    assert "1.2" in odd.lock


def test_an_environment_is_made_whatever_the_path_is(odd: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlay_tools.wheels.builder._KERNEL_METADATA", "")
    monkeypatch.setenv("UV_OFFLINE", "1")
    wheel = build_kernel(odd.project, odd.lock["1.0"]).path
    with open_environment(odd.root / ".nox" / "engines" / "env", None, [wheel], []) as python:
        subprocess.run([python, "-c", "import sgl_kernel; assert sgl_kernel.KERNEL == 1"], check=True)


def test_a_path_that_cannot_be_in_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mini = make_miniature(tmp_path / "co:lon", monkeypatch)
    monkeypatch.chdir(mini.root)
    assert cli.main(["build", "1.0", *HERE]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {mini.root} has a ':' in its path")
    assert not (mini.root / "dist").exists()
    shutil.copy(REPOSITORY / "noxfile.py", mini.root)
    (mini.root / "ci").symlink_to(REPOSITORY / "ci")
    done = subprocess.run([sys.executable, "-m", "nox", "--list"], capture_output=True, text=True, check=False)
    assert (done.returncode != 0, done.stderr) == (True, said)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which Python finds another sglang first, and leaves out assertions."""
    for name in ("sglang", "sgl_kernel"):
        (tmp_path / "theirs" / name).mkdir(parents=True)
        (tmp_path / "theirs" / name / "__init__.py").write_text("THEIRS = 1\n")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        "PYTHONPATH": str(tmp_path / "theirs"),
        "PYTHONOPTIMIZE": "2",
        "PYTHONSAFEPATH": "1",
    }


def test_pythons_settings_do_not_reach_what_the_tool_starts(mini: Miniature, settings: dict[str, str]) -> None:
    program = mini.write("engine/python", f'#!/bin/sh\necho "{PRINTED}"\n')
    program.chmod(0o755)
    code = "import sys; from contextlib import nullcontext; from pathlib import Path\n"
    code += "from overlay_tools import cli; from overlay_tools.commands import shared\n"
    code += f"shared.engine_environment = lambda *a, **k: nullcontext(Path({str(program)!r}))\n"
    code += "sys.argv[1:] = ['test-engine', '1.0']; sys.exit(cli.main())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=mini.root, env=settings, capture_output=True, text=True, check=True
    )
    assert done.stdout == "PYTHONPATH= PYTHONHOME= PYTHONOPTIMIZE=\n"


def test_verify_looks_where_the_users_interpreter_does(
    mini: Miniature, settings: dict[str, str], tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "overlay_tools", "verify", "--env", sys.executable]
    done = subprocess.run(words, cwd=mini.root, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{tmp_path / 'theirs' / 'sglang'} (on PYTHONPATH)" in done.stderr


def test_pythons_settings_do_not_reach_a_session(tmp_path: Path, settings: dict[str, str]) -> None:
    for name in ("ci", "upstream.lock", "pyproject.toml"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    session = f"\n\n@nox.session(venv_backend='none')\ndef shown(s):\n    s.run('sh', '-c', 'echo \"{PRINTED}\"')\n"
    (tmp_path / "noxfile.py").write_text((REPOSITORY / "noxfile.py").read_text(encoding="utf-8") + session)
    words = [sys.executable, "-m", "nox", "-s", "shown"]
    done = subprocess.run(words, cwd=tmp_path, env=settings, capture_output=True, text=True, check=False)
    assert "PYTHONPATH= PYTHONHOME= PYTHONOPTIMIZE=\n" in done.stdout + done.stderr


def test_what_is_set_after_it_was_set_aside_stands() -> None:
    environ = {"PYTHONPATH": "a", "PYTHONHOME": "b", "PYTHONUTF8": "1"}
    set_aside(environ)
    assert {name for name in environ if name.startswith("PYTHON")} == {"PYTHONUTF8"}
    assert users_python(environ) == {"PYTHONPATH": "a", "PYTHONHOME": "b"}
    assert users_python({**environ, "PYTHONPATH": "c"}) == {"PYTHONHOME": "b"}
