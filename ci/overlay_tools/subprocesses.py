"""The one way to call another program; with --verbose each is shown."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from overlay_tools import console, supervisor
from overlay_tools.errors import ToolError
from overlay_tools.git_settings import REFUSED, git_environment, users_environment

_PATIENCE = 30.0  # seconds that a command gets to clear up
Words = Sequence[str | Path]
_shared: list[int] = []  # files that each supervisor holds open too


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
    done = _capture(command, cwd, env or {}, None if stdin is None else _bytes(stdin))
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
    process = start(command, env={**os.environ, **env}, attached=True)
    try:
        process.wait()
    except BaseException as error:
        ctrl_c = type(error) is KeyboardInterrupt  # has reached the command too
        end(process, None if ctrl_c else signal.SIGINT, _PATIENCE)
        raise
    finally:
        shown.ended(process.returncode)
    return process.returncode


def run_logged(command: Words, *, cwd: Path, env: Mapping[str, str], log: Path) -> int:
    """Run a command to its end with its output in a file, and return its exit status.

    Where this is interrupted, the command is as if by Ctrl-C, and gets 30 seconds to clear up.
    """
    shown = Shown(command, cwd)
    with log.open("wb") as output:
        process = start(
            command, cwd=cwd, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        process.wait()
    except BaseException:
        end(process, signal.SIGINT, _PATIENCE)
        raise
    finally:
        shown.ended(process.returncode)
    return process.returncode


def start(
    command: Words,
    *,
    env: Mapping[str, str],
    cwd: Path | None = None,
    attached: bool = False,
    stdin: int | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program with a supervisor, which ends all of it when the program ends, or this process, in whatever way.

    Parameters: `env`, all of its environment; `attached`, whether it gets Ctrl-C and reads from the terminal as this
    process does; the others as of `subprocess.Popen`.
    Returns the supervisor, which passes on the signals to end, and ends as the program does.
    Raises ToolError if the program or the folder is absent.
    """
    mode = supervisor.ATTACHED if attached else supervisor.APART
    # Nothing of the environment or of site-packages has a say in the supervisor, and it starts in a moment.
    words = [sys.executable, "-IS", supervisor.__file__, str(os.getpid()), mode, *map(str, command)]
    with _start_errors(command, cwd):
        _check_program(str(command[0]), cwd, env)
        # A signal that comes before the supervisor is ready for it waits until then.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, supervisor.PASSED_ON)
        try:
            return subprocess.Popen(
                words,
                cwd=cwd,
                env=env,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=_shared,
                start_new_session=not attached,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def held_by_what_is_started(path: Path, operation: int) -> Iterator[None]:
    """Hold a lock until all that is started inside has ended: if this process is killed, that takes a moment longer.

    Parameters: `path`, its file; `operation`, as of `fcntl.flock`. A file system without such locks does without.
    """
    with path.open("ab") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, operation)
        _shared.append(file.fileno())
        try:
            yield
        finally:
            _shared.remove(file.fileno())


def _check_program(program: str, cwd: Path | None, env: Mapping[str, str]) -> None:
    """Raise the error of the system that starting a program would give, as far as one can see."""
    path = os.path.join(cwd or "", program) if os.path.dirname(program) else program  # noqa: PTH118, PTH120
    if shutil.which(path, path=env.get("PATH")) is None:
        number = errno.EACCES if os.path.dirname(program) and Path(path).exists() else errno.ENOENT  # noqa: PTH120
        raise OSError(number, os.strerror(number))


def end(process: subprocess.Popen[bytes], number: signal.Signals | None, patience: float) -> None:
    """Ask what `start` has started to end, and end all of it once patience is over.

    Parameters: `number`, the signal that asks, None where it has been asked; `patience`, in seconds.
    """
    try:
        if number is not None:
            process.send_signal(number)
        process.wait(patience)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.send_signal(supervisor.END_NOW)
        if process.wait() == -signal.SIGKILL:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # where the supervisor itself was killed, its group goes on


def git(arguments: Words, *, cwd: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run git in a folder as if there were no repository around it and no configuration of the user's.

    Inside a repository that ignores the folder, `git apply` would change nothing and report success.
    Raises ToolError if git or the folder is absent, or git refuses a repository because of its owner.
    """
    done = git_bytes(arguments, cwd=cwd, stdin=None if stdin is None else _bytes(stdin))
    return subprocess.CompletedProcess(done.args, done.returncode, _text(done.stdout), _text(done.stderr))


def git_bytes(arguments: Words, *, cwd: Path, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run git as `git` does, and return its output as it is: text would have its line ends made alike."""
    command = ["git", *arguments]
    done = _capture(command, cwd, git_environment(cwd), stdin, _start_git)
    if done.returncode == 0 or REFUSED not in _text(done.stderr):
        return done
    # Of the user's configuration this alone counts: whom to trust is for the user to say. git has done nothing yet.
    asked = run(
        ["git", "config", "-z", "--get-all", "safe.directory"], cwd=Path("/"), env=users_environment(), check=False
    )
    if safe := asked.stdout.split("\0")[:-1]:
        done = _capture(command, cwd, git_environment(cwd, safe), stdin, _start_git)
    if done.returncode != 0 and REFUSED in _text(done.stderr):
        raise ToolError(
            f"{cwd} belongs to another user, so git does not open it.",
            hint=f"Change its owner, or trust it: `git config --global --add safe.directory {shlex.quote(str(cwd))}`.",
        )
    return done


def _start_git(
    command: Words, *, cwd: Path | None, env: Mapping[str, str], stdin: int, stdout: int, stderr: int
) -> subprocess.Popen[bytes]:
    """Start git as `start` does, but by itself: it is called hundreds of times, and ends within a moment anyway."""
    with _start_errors(command, cwd):
        return subprocess.Popen(
            [str(word) for word in command], cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr
        )


def _capture(
    command: Words,
    cwd: Path | None,
    env: Mapping[str, str | None],
    stdin: bytes | None,
    start: Callable[..., subprocess.Popen[bytes]] = start,
) -> subprocess.CompletedProcess[bytes]:
    shown = Shown(command, cwd)
    environment = {name: value for name, value in {**os.environ, **env}.items() if value is not None}
    source = subprocess.DEVNULL if stdin is None else subprocess.PIPE
    pipe = subprocess.PIPE
    with start(command, cwd=cwd, env=environment, stdin=source, stdout=pipe, stderr=pipe) as process:
        try:
            out, err = process.communicate(stdin)
        except BaseException:
            end(process, signal.SIGTERM, _PATIENCE)
            raise
    shown.ended(process.returncode, _text(err))
    return subprocess.CompletedProcess([*map(str, command)], process.returncode, out, err)


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


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape").replace("\r\n", "\n").replace("\r", "\n")
