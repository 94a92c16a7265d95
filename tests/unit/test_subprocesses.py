"""Programs that are called: what is said of one that cannot be, what is shown of all with --verbose."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from overlay_tools import console
from overlay_tools.engines.server import Server
from overlay_tools.errors import ServeError, ToolError
from overlay_tools.subprocesses import git, git_bytes, run, run_attached, run_logged


@pytest.fixture
def verbose() -> Iterator[None]:
    console.set_verbose(True)
    yield
    console.set_verbose(False)


def test_a_folder_that_is_gone_is_not_taken_for_an_absent_program(tmp_path: Path) -> None:
    for call in (git, git_bytes):
        with pytest.raises(ToolError, match=r"There is no folder .*gone to run git in") as caught:
            call(["status"], cwd=tmp_path / "gone")
        assert "Install" not in caught.value.hint
    with pytest.raises(ToolError, match=f"There is no folder .*gone to run {sys.executable} in"):
        run_logged([sys.executable, "-c", "1"], cwd=tmp_path / "gone", env={}, log=tmp_path / "log")


def test_a_program_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"^no-such-program is not on this machine") as caught:
        run(["no-such-program"], cwd=tmp_path)
    assert caught.value.hint == "Install no-such-program and run this again."


def test_a_program_that_may_not_be_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=re.escape(f"{tmp_path} cannot be run: Permission denied")):
        run([tmp_path])


def test_a_failure_shows_the_whole_output_and_the_next_step() -> None:
    script = "import sys; print('said'); print('complained', file=sys.stderr); sys.exit(4)"
    with pytest.raises(ToolError, match=r"failed with status 4:\nsaid\ncomplained$") as caught:
        run([sys.executable, "-c", script])
    assert "--verbose" in caught.value.hint


def test_output_is_text_with_line_ends_made_alike_or_bytes_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a\r\nb\xff\n")
    git(["init", "--quiet"], cwd=tmp_path)
    name = git(["hash-object", "-w", "--no-filters", "file"], cwd=tmp_path).stdout.strip()
    assert git(["cat-file", "blob", name], cwd=tmp_path).stdout == "a\nb\udcff\n"
    assert git_bytes(["cat-file", "blob", name], cwd=tmp_path).stdout == b"a\r\nb\xff\n"


@pytest.mark.usefixtures("verbose")
def test_verbose_shows_every_way_to_call_a_program(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    here, python = shlex.quote(str(tmp_path)), sys.executable
    run([python, "-c", "pass"])
    git(["status"], cwd=tmp_path)
    run_logged([python, "-c", "import os; os.kill(os.getpid(), 9)"], cwd=tmp_path, env={}, log=tmp_path / "log")
    assert run_attached([python, "-c", "import sys; sys.exit(5)"], env={}) == 5
    with pytest.raises(ServeError), Server(Path(python), tmp_path, ["--a b"], env={}, log=tmp_path / "log"):
        pytest.fail("it came up")
    said = capfd.readouterr()
    assert said.out == ""
    took = r" after \d+\.\d\d s\n"
    assert re.fullmatch(
        rf"\$ {python} -c pass\n  exit status 0{took}"
        rf"\$ cd {here} && git status\n  exit status 128{took}  fatal: not a git repository.*\n"
        rf"\$ cd {here} && {python} -c 'import os; os.kill\(os.getpid\(\), 9\)'\n  ended by SIGKILL{took}"
        rf"\$ {python} -c 'import sys; sys.exit\(5\)'\n  exit status 5{took}"
        rf"\$ {python} -m sglang.launch_server --model-path {here} --host 127.0.0.1 --port \d+ '--a b'\n"
        rf"  exit status 1{took}",
        said.err,
    )


def test_without_verbose_nothing_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    run([sys.executable, "-c", "import sys; print('loud', file=sys.stderr)"])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_runs_attached_can_clear_up_when_it_is_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C reaches both on a terminal; a signal to the tool alone is passed on."""
    by_default = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # else as it is here
    child = f"{by_default}import time; from pathlib import Path\n"
    child += f"try: Path({str(tmp_path / 'up')!r}).touch(); time.sleep(60)\n"
    child += f"finally: time.sleep(0.5); Path({str(tmp_path / 'cleared')!r}).touch()"
    tool = f"{by_default}import sys; from overlay_tools.subprocesses import run_attached\n"
    tool += "signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))\n"
    tool += f"run_attached([sys.executable, '-c', {child!r}], env={{}})"
    process = subprocess.Popen([sys.executable, "-c", tool], start_new_session=True, stderr=subprocess.DEVNULL)
    while not (tmp_path / "up").exists():
        time.sleep(0.01)
    if number == signal.SIGINT:
        subprocess.run(["kill", "-INT", "--", f"-{process.pid}"], check=True)
    else:
        process.send_signal(number)
    assert process.wait(30) != 0
    assert (tmp_path / "cleared").exists()


def test_what_runs_attached_and_ignores_the_interrupt_is_killed(tmp_path: Path) -> None:
    up = tmp_path / "up"
    child = "import os, signal, time; from pathlib import Path; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    child += f"Path({str(up)!r}).write_text(str(os.getpid())); time.sleep(60)"
    tool = "import signal, sys; from overlay_tools import subprocesses; subprocesses._PATIENCE = 0.2\n"
    tool += "signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))\n"
    tool += f"subprocesses.run_attached([sys.executable, '-c', {child!r}], env={{}})"
    process = subprocess.Popen([sys.executable, "-c", tool])
    while not (up.exists() and up.read_text()):
        time.sleep(0.01)
    process.terminate()
    assert process.wait(30) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(up.read_text()), 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_runs_logged_can_clear_up_when_it_is_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    """What it has started and left behind, in a session of its own, ends all the same."""
    up, stray, cleared = tmp_path / "up", tmp_path / "stray", tmp_path / "cleared"
    child = "import signal, subprocess, sys, time; from pathlib import Path\n"
    child += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    child += "sleep = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
    child += f"Path({str(stray)!r}).write_text(str(subprocess.Popen(sleep, start_new_session=True).pid))\n"
    child += f"try: Path({str(up)!r}).touch(); time.sleep(60)\n"
    child += f"finally: time.sleep(0.5); Path({str(cleared)!r}).touch()"
    tool = "import signal, sys; from pathlib import Path; from overlay_tools.subprocesses import run_logged\n"
    tool += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    tool += "signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))\n"
    tool += (
        f"run_logged([sys.executable, '-c', {child!r}], cwd=Path('.'), env={{}}, log=Path({str(tmp_path / 'log')!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", tool], stderr=subprocess.DEVNULL)
    while not up.exists():
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(20) != 0
    assert cleared.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(stray.read_text()), 0)


def test_what_a_logged_program_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    leave = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid, flush=True)"
    assert run_logged([sys.executable, "-c", leave], cwd=tmp_path, env={}, log=tmp_path / "log") == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "log").read_text()), 0)


@pytest.mark.parametrize("interrupt", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_reaches_no_supervisor(tmp_path: Path, interrupt: signal.Signals) -> None:
    """Not in its first moments either: what it is to run then runs, and is ended as it should be."""
    tool = "import os, signal, sys; from overlay_tools.subprocesses import run_attached\n"
    tool += f"signal.signal({int(interrupt)}, lambda number, frame: os.write(1, b'signal\\n'))\n"
    tool += "print('ready', flush=True)\n"
    tool += f"sys.exit(run_attached(['sh', '-c', 'trap : {interrupt.name[3:]}; sleep 1; exit 7'], env={{}}))"
    process = subprocess.Popen(
        [sys.executable, "-c", tool], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        for _ in range(40):
            time.sleep(0.005)
            os.killpg(process.pid, interrupt)
        assert process.wait(30) in (7, 256 - interrupt, -interrupt)  # the last if it comes at its very end
        # The shell says so of its `sleep`, if the signal comes while that is there already.
        assert set(process.stdout.read().split()) - {b"Terminated"} == {b"signal"}


def test_a_program_starts_at_once_with_no_file_of_ours_whatever_the_limit_on_files(tmp_path: Path) -> None:
    """Some builds of Python close each number of a range by itself, and Docker allows a thousand million of them."""
    script = """if True:
        import contextlib, os, sys
        from overlay_tools import supervisor

        def closerange(first, end):
            for number in range(first, end):
                with contextlib.suppress(OSError):
                    os.close(number)

        os.closerange, os.sysconf = closerange, lambda name: 1 << 30
        os.set_inheritable(os.open(sys.executable, os.O_RDONLY), True)
        supervisor.supervise(os.getppid(), supervisor.APART, ["ls", "/proc/self/fd"])
    """
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, cwd=tmp_path, stdout=subprocess.PIPE, timeout=20, check=True)
    assert done.stdout.split() == [b"0", b"1", b"2", b"3"]  # the last is how `ls` reads that folder
