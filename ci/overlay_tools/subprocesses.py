"""The one way to call another program; with --verbose each is shown."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from overlay_tools import console
from overlay_tools.errors import ToolError
from overlay_tools.git_settings import REFUSED, git_environment, users_environment

_PATIENCE = 30.0  # seconds that a command gets to clear up
Words = Sequence[str | Path]


class Shown:
    """A program that is called: its arguments are shown now, its exit status and how long it took once it has ended.

    Parameters: `cwd`, the folder that it runs in, None for this process's own.
    """

    def __init__(self, command: Words, cwd: Path | None = None) -> None:
        where = f"cd {shlex.quote(str(cwd))} && " if cwd else ""
        console.detail(f"$ {where}{shlex.join(map(str, command))}")
        self._started = time.perf_counter()

    def ended(self, status: int, stderr: str = "") -> None:
        """Show how it ended, and what it said on standard error if it failed."""
        how = f"exit status {status}" if status >= 0 else f"ended by {signal.Signals(-status).name}"
        console.detail(f"  {how} after {time.perf_counter() - self._started:.2f} s")
        if status and stderr.strip():
            console.detail(textwrap.indent(stderr.rstrip(), "  "))


def run(
    command: Words,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str | None] | None = None,
    stdin: str | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its output as text.

    Parameters: `env` is added to this process's own, a None in it takes the variable away; `stdin` is what the command
    reads; with `check`, a failure is an error that shows the whole of its output.
    Raises ToolError if the program or the folder is absent, or under `check` if the program failed.
    """
    data = None if stdin is None else stdin.encode("utf-8", "surrogateescape")
    done = _capture(command, cwd, env or {}, data)
    out, err = (_text(data) for data in (done.stdout, done.stderr))
    if check and done.returncode != 0:
        raise ToolError(
            f"{' '.join(map(str, command))} failed with status {done.returncode}:\n{(out + err).strip()}",
            hint="Its own output says why; --verbose shows what was called before it.",
        )
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def run_attached(command: Words, *, env: Mapping[str, str]) -> int:
    """Run a command that reads and writes where this process does, and return its exit status.

    Where this is interrupted, the command is as if by Ctrl-C, and gets 30 seconds to clear up.
    """
    shown = Shown(command)
    with _start_errors(command, None):
        process = subprocess.Popen([str(word) for word in command], env={**os.environ, **env})
    try:
        process.wait()
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):  # Ctrl-C has reached the command too
            process.send_signal(signal.SIGINT)
        _wait_or_kill(process)
        raise
    finally:
        if process.returncode is not None:
            shown.ended(process.returncode)
    return process.returncode


def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
    """Give a process time to end, and no more: what a shell starts in the background ignores Ctrl-C."""
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run_logged(command: Words, *, cwd: Path, env: Mapping[str, str], log: Path) -> int:
    """Run a command to its end with its output in a file, and return its exit status.

    Where this is interrupted, the command is as if by Ctrl-C, and gets 30 seconds to clear up.
    """
    shown = Shown(command, cwd)
    with log.open("wb") as output:
        with _start_errors(command, cwd):
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=cwd,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            status = process.wait()
        except BaseException:
            process.send_signal(signal.SIGINT)
            _wait_or_kill(process)
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    shown.ended(status)
    return status


def git(arguments: Words, *, cwd: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run git in a folder as if there were no repository around it and no configuration of the user's.

    Inside a repository that ignores the folder, `git apply` would change nothing and report success.
    Raises ToolError if git or the folder is absent, or git refuses a repository because of its owner.
    """
    data = None if stdin is None else stdin.encode("utf-8", "surrogateescape")
    done = git_bytes(arguments, cwd=cwd, stdin=data)
    return subprocess.CompletedProcess(done.args, done.returncode, _text(done.stdout), _text(done.stderr))


def git_bytes(arguments: Words, *, cwd: Path, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run git as `git` does, and return its output as it is: text would have its line ends made alike."""
    command = ["git", *arguments]
    done = _capture(command, cwd, git_environment(cwd), stdin)
    if done.returncode == 0 or REFUSED not in _text(done.stderr):
        return done
    # Of the user's configuration this alone counts: whom to trust is for the user to say. git has done nothing yet.
    asked = run(
        ["git", "config", "-z", "--get-all", "safe.directory"], cwd=Path("/"), env=users_environment(), check=False
    )
    if safe := asked.stdout.split("\0")[:-1]:
        done = _capture(command, cwd, git_environment(cwd, safe), stdin)
    if done.returncode != 0 and REFUSED in _text(done.stderr):
        raise ToolError(
            f"{cwd} belongs to another user, so git does not open it.",
            hint=f"Change its owner, or trust it: `git config --global --add safe.directory {shlex.quote(str(cwd))}`.",
        )
    return done


def _capture(
    command: Words, cwd: Path | None, env: Mapping[str, str | None], stdin: bytes | None
) -> subprocess.CompletedProcess[bytes]:
    shown = Shown(command, cwd)
    with _start_errors(command, cwd):
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env={name: value for name, value in {**os.environ, **env}.items() if value is not None},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
        )
    shown.ended(done.returncode, _text(done.stderr))
    return done


@contextlib.contextmanager
def _start_errors(command: Words, cwd: Path | None) -> Iterator[None]:
    """Say whether the program or the folder is what a command could not be started for: the system names neither."""
    program = str(command[0])
    try:
        yield
    except OSError as error:
        if cwd is not None and not cwd.is_dir():
            raise ToolError(f"There is no folder {cwd} to run {program} in.", hint="Restore it.") from None
        if not isinstance(error, FileNotFoundError):
            raise ToolError(f"{program} cannot be run: {error.strerror}.") from None
        raise ToolError(f"{program} is not on this machine.", hint=f"Install {program} and run this again.") from None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape").replace("\r\n", "\n").replace("\r", "\n")
