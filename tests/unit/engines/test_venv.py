"""Environments that commands share, made with uv, each command a process of its own where several are at work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from overlay_tools import subprocesses
from overlay_tools.engines import venv
from overlay_tools.engines.venv import open_environment
from overlay_tools.errors import OverlayError, ToolError
from overlay_tools.upstream.lockfile import THIS_PYTHON
from overlay_tools.wheels.builder import BuiltWheel, build_kernel

from unit.conftest import REPOSITORY, Miniature, write_wheel

# A command that opens an environment, says so, and runs from it until its input ends.
COMMAND = """\
import sys
from pathlib import Path
from overlay_tools.engines import venv
venv._PATIENCE = float(sys.argv[3])
with venv.open_environment(Path(sys.argv[1]), None, [Path(sys.argv[2])], []) as python:
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def wheel(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> BuiltWheel:
    """Return a kernel wheel that requires nothing, so that no index is needed."""
    monkeypatch.setattr("overlay_tools.wheels.builder._KERNEL_METADATA", "")
    monkeypatch.setenv("UV_OFFLINE", "1")
    return build_kernel(mini.project, mini.lock["1.0"])


@pytest.fixture
def folder(mini: Miniature) -> Path:
    return mini.root / ".nox" / "engines" / "env"


def changed(mini: Miniature) -> Path:
    """Build the kernel wheel anew, of a changed overlay, in its old place."""
    mini.write("overlay/sgl_kernel/__init__.py", "KERNEL = 2\n")
    return build_kernel(mini.project, mini.lock["1.0"]).path


def make(folder: Path, wheel: Path, python: str | None = None, extras: Sequence[str] = ()) -> Path:
    with open_environment(folder, python, [wheel], extras) as interpreter:
        return interpreter


def kernel_of(python: Path) -> str:
    code = "import sgl_kernel; print(sgl_kernel.KERNEL)"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def mark(folder: Path) -> Callable[[], bool]:
    """Return what tells whether the environment is still the one that it is now."""
    (folder / "mark").write_text("kept while the environment is")
    return (folder / "mark").exists


def command(stack: ExitStack, folder: Path, wheel: Path, patience: float = 60) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", COMMAND, str(folder), str(wheel), str(patience)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "ci")}
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    stack.enter_context(process)
    stack.callback(process.kill)
    return process


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_it_is_made_once_and_follows_its_wheels(mini: Miniature, wheel: BuiltWheel, folder: Path) -> None:
    python = make(folder, wheel.path)
    assert kernel_of(python) == "1"
    kept, stamp = mark(folder), (folder / "sglang-overlay.json").stat().st_mtime_ns
    assert make(folder, wheel.path) == python
    assert (folder / "sglang-overlay.json").stat().st_mtime_ns == stamp
    assert kernel_of(make(folder, changed(mini))) == "2"
    assert kept()


def test_it_is_not_changed_while_something_of_a_killed_command_runs_in_it(
    mini: Miniature, wheel: BuiltWheel, folder: Path
) -> None:
    """What ignores the request to end runs for five seconds more, here for one: its supervisor is killed then."""
    stubborn = "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    stubborn += "print(os.getppid(), sorted(os.listdir('/proc/self/fd')), file=sys.stderr, flush=True); time.sleep(600)"
    run = "from overlay_tools.subprocesses import run_attached\n"
    words = COMMAND.replace("sys.stdin.read()", f"run_attached([python, '-c', {stubborn!r}], env={{}})")
    process = subprocess.Popen(
        [sys.executable, "-c", run + words, str(folder), str(wheel.path), "60"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "ci")},
    )
    with process:
        while not (said := read_line(process))[:1].isdigit():
            assert said
        supervisor, open_files = said.split(maxsplit=1)
        assert open_files == "['0', '1', '2', '3']"  # the last reads the folder: the lock is the supervisor's alone
        process.kill()
    threading.Timer(1, lambda: os.kill(int(supervisor), signal.SIGKILL)).start()
    began = time.monotonic()
    python = make(folder, changed(mini))
    assert time.monotonic() - began > 1
    assert kernel_of(python) == "2"


def test_sessions_with_the_same_interpreter_share_it(mini: Miniature, wheel: BuiltWheel, folder: Path) -> None:
    make(folder, wheel.path)
    kept, stamp = mark(folder), (folder / "sglang-overlay.json").read_bytes()
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", mini.root / "session"], check=True)
    site = next((mini.root / "session").glob("lib/*/site-packages"))
    (site / "more.pth").write_text(os.pathsep.join(path for path in sys.path if "site-packages" in path) + "\n")
    words: list[str | Path] = [mini.root / "session/bin/python", "-c", COMMAND, folder, wheel.path, "5"]
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "ci")},
    )
    assert (done.stdout, done.returncode) == ("open\n", 0), done.stderr
    make(folder, wheel.path, THIS_PYTHON)
    assert kept()
    assert (folder / "sglang-overlay.json").read_bytes() == stamp


def test_one_whose_making_was_cut_short_is_made_anew(wheel: BuiltWheel, folder: Path) -> None:
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "half").write_text("")
    assert kernel_of(make(folder, wheel.path)) == "1"
    assert not (folder / "lib" / "half").exists()


@pytest.mark.parametrize("stamp", ["", "{", "[]", "{}", '{"python": ["a", "b"]}'])
def test_one_whose_stamp_says_nothing_is_made_anew(wheel: BuiltWheel, folder: Path, stamp: str) -> None:
    make(folder, wheel.path)
    kept = mark(folder)
    (folder / "sglang-overlay.json").write_text(stamp)
    make(folder, wheel.path)
    assert not kept()


def test_one_whose_interpreter_is_another_now_is_made_anew(
    wheel: BuiltWheel, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = make(folder, wheel.path)
    real, version = python.resolve(), sys.version.split()[0]
    stamp = folder / "sglang-overlay.json"
    for made_with, gone, says in (
        ([str(real), "3.99.1"], False, f"it was made with Python 3.99.1 of {real}, which is {version} of {real} now"),
        (["/usr/bin/other", version], False, f"which is {version} of {real} now"),
        ([str(real), version], True, f"its interpreter {real} is gone"),
    ):
        kept = mark(folder)
        stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "python": made_with}))
        if gone:
            python.unlink()
            python.symlink_to("/nowhere/python")
        assert kernel_of(make(folder, wheel.path)) == "1"
        assert not kept()
        assert f"{folder} is made anew: " in (said := capsys.readouterr().out)
        assert says in said


def test_one_of_another_interpreter_of_the_same_version_is_made_anew(
    mini: Miniature,
    wheel: BuiltWheel,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(folder, wheel.path)
    kept = mark(folder)
    launcher = mini.write("launcher/python", f'#!/bin/sh\nexec "{os.path.realpath(sys.executable)}" "$@"\n')
    launcher.chmod(0o755)
    stamp = folder / "sglang-overlay.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "source": [str(launcher)]}))
    monkeypatch.setattr(sys, "_base_executable", str(launcher))
    make(folder, wheel.path)
    assert kept()
    monkeypatch.setattr(sys, "_base_executable", str(mini.root / "absent/python"))
    with pytest.raises(ToolError, match=r"uv venv .*absent/python"):
        make(folder, wheel.path)
    assert not kept()
    assert f"and this runs with {mini.root}/absent/python." in capsys.readouterr().out


def test_one_whose_packages_something_else_changed_is_made_anew(
    wheel: BuiltWheel, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = make(folder, wheel.path)
    for words in (["uninstall"], ["install", "--reinstall"]):
        kept = mark(folder)
        what = wheel.path if "install" in words else "sglang-kernel"
        subprocess.run(["uv", "pip", *words, "--quiet", "--python", python, what], check=True)
        assert kernel_of(make(folder, wheel.path)) == "1"
        assert not kept()
        assert "its packages were changed by something else" in capsys.readouterr().out


def test_a_wheel_that_has_another_name_now_is_not_left_beside_it(
    mini: Miniature, wheel: BuiltWheel, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "acme.py": b"",
        "acme-1.dist-info/METADATA": b"Metadata-Version: 2.1\nName: acme\nVersion: 1\n",
        "acme-1.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    make(folder, write_wheel(mini.root / "acme-1-py3-none-any.whl", files))
    python = make(folder, wheel.path)
    assert kernel_of(python) == "1"
    assert list(folder.glob("lib/python*/site-packages/acme*")) == []
    assert "it holds acme, which it is not to hold now" in capsys.readouterr().out


def test_what_cannot_be_installed_is_named_and_tried_again(wheel: BuiltWheel, folder: Path) -> None:
    with pytest.raises(ToolError, match="no-such-distribution"):
        make(folder, wheel.path, extras=["no-such-distribution"])
    assert kernel_of(make(folder, wheel.path)) == "1"
    with pytest.raises(ToolError, match="no-such-distribution"):
        make(folder, wheel.path, extras=["no-such-distribution"])
    kept = mark(folder)
    assert kernel_of(make(folder, wheel.path)) == "1"
    assert not kept()


def test_what_is_left_out_is_not_installed(mini: Miniature, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlay_tools.wheels.builder._KERNEL_METADATA", "Requires-Dist: no-such-distribution\n")
    monkeypatch.setenv("UV_OFFLINE", "1")
    wheel = build_kernel(mini.project, mini.lock["1.0"]).path
    with open_environment(folder, None, [wheel], [], ["no-such-distribution"]) as python:
        assert kernel_of(python) == "1"
    with pytest.raises(ToolError, match="no-such-distribution"):
        make(folder, wheel)


def test_a_wheel_that_changes_while_it_is_installed_is_an_error(
    mini: Miniature, wheel: BuiltWheel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocesses.run

    def run(words: Sequence[str | Path], **options: bool) -> object:
        if "install" in words:
            changed(mini)
        return real(words, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(venv, "run", run)
    with pytest.raises(OverlayError, match="whl changed while it was installed"):
        make(folder, wheel.path)
    monkeypatch.undo()
    monkeypatch.setenv("UV_OFFLINE", "1")
    assert kernel_of(make(folder, wheel.path)) == "2"


def test_commands_that_change_nothing_run_side_by_side(wheel: BuiltWheel, folder: Path) -> None:
    with ExitStack() as stack:
        several = [command(stack, folder, wheel.path) for _ in range(4)]
        said = [read_line(process) for process in several]
        assert any(line == "open" for line in said)
        said = [line if line == "open" else read_line(process) for line, process in zip(said, several, strict=True)]
        assert said == ["open"] * 4
        assert all(process.poll() is None for process in several)


def test_a_command_waits_for_one_that_makes_it(
    wheel: BuiltWheel, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.parent.mkdir(parents=True)
    hold = "import sys, time; from filelock import ReadWriteLock; lock = ReadWriteLock(sys.argv[1])"
    words = [sys.executable, "-c", f"{hold}; lock.acquire_write(); print(flush=True); time.sleep(2)", f"{folder}.lock"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert read_line(other) == ""
        assert kernel_of(make(folder, wheel.path)) == "1"
    assert f"Another command makes {folder}: waiting for it to end." in capsys.readouterr().out


def test_one_that_another_command_runs_from_is_not_changed(mini: Miniature, wheel: BuiltWheel, folder: Path) -> None:
    with ExitStack() as stack:
        first = command(stack, folder, wheel.path)
        assert read_line(first) == "open"
        new = changed(mini)
        refused = command(stack, folder, new, patience=1)
        what = f"runs from {folder}, which has to change"
        assert read_line(refused) == f"Another command {what}: waiting for it to end."
        assert refused.wait(30) == 1
        assert refused.stdout
        assert f"After 1 seconds, another command still {what}." in refused.stdout.read()
        assert kernel_of(folder / "bin/python") == "1"
        several = [command(stack, folder, new) for _ in range(2)]
        for waiting in several:
            assert read_line(waiting) == f"Another command {what}: waiting for it to end."
        time.sleep(1)
        assert kernel_of(folder / "bin/python") == "1"
        first.communicate()
        for waiting in several:  # one makes it and runs from it, and the other need not wait for that one to end
            while (said := read_line(waiting)) != "open":
                assert said == f"Another command makes {folder}: waiting for it to end."
        assert kernel_of(folder / "bin/python") == "2"


def test_a_killed_command_holds_nothing(mini: Miniature, wheel: BuiltWheel, folder: Path) -> None:
    with ExitStack() as stack:
        first = command(stack, folder, wheel.path)
        assert read_line(first) == "open"
        first.send_signal(signal.SIGKILL)
        first.wait()
        second = command(stack, folder, changed(mini), patience=0)
        assert read_line(second) == "open"


@pytest.mark.parametrize("moment", [0.3, 0.6, 0.9, 1.2])
def test_a_command_that_is_killed_while_it_makes_one_leaves_none_that_is_used(
    wheel: BuiltWheel, folder: Path, moment: float
) -> None:
    with ExitStack() as stack:
        first = command(stack, folder, wheel.path)
        time.sleep(moment)
        first.kill()
        first.wait()
    assert kernel_of(make(folder, wheel.path)) == "1"
