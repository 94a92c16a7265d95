"""Servers and engines that are forks of a process which has imported SGLang already: see zygote.py."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from overlay_tools.engines.server import Server
from overlay_tools.subprocesses import end, start
from overlay_tools.supervisor import END_NOW
from packaging.version import Version

# What a server reads of its environment when it starts, not when its modules are imported.
_AT_START = {
    "NO_PROXY",
    "SGLANG_CPU_OMP_THREADS_BIND",
    "SGLANG_ENABLE_SPEC_V2",
    "SGLANG_OVERLAY_ALLOWED_LOCAL_MEDIA_PATH",
    "SGLANG_OVERLAY_ALLOW_UNPROVEN_ON_CPU",
    "no_proxy",
}


class ForkedServer(Server):
    """A server that is forked, unless what is imported may depend on its environment.

    The code `changes` puts functions into CHANGES, as `harness.FIRST` describes them; only what is forked can have it.
    """

    changes = ""

    def _start(self, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        if not may_be_forked(environment):
            assert not self.changes, "it cannot be forked"
            return super()._start(environment)
        # Upstream's own check, of a token, takes a second more, for which it sleeps. Before 0.5.10 it has to be: a
        # server whose first request is to empty its cache never answers that one.
        if Version(version("sglang")) >= Version("0.5.10"):
            self._health = "/get_model_info"
        self.log.write_bytes(b"")
        return fork(self.command[2:], environment, self.log, self.changes)


def may_be_forked(environment: Mapping[str, str]) -> bool:
    """Tell whether nothing that is imported may depend on how an environment differs from this process's."""
    names = {*os.environ, *environment} - _AT_START
    return all(os.environ.get(name) == environment.get(name) for name in names)


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, a file with arguments, its output in the file `log`, and end all of it.

    It is forked, unless what is imported may depend on what is added to its `environment`.
    """
    environment = {**os.environ, **environment}
    if may_be_forked(environment):
        process = fork(command, environment, log)
    else:
        with log.open("wb") as output:
            process = start(
                [sys.executable, *command], env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
    try:
        yield process
    finally:
        end(process, END_NOW, 10)


def fork(
    command: Sequence[str], environment: Mapping[str, str], log: Path, changes: str = ""
) -> subprocess.Popen[bytes]:
    """Fork a process that runs a program, a module or a file, with arguments, its output in the file `log`."""
    return Forked(command, environment, log, changes)  # type: ignore[return-value]  # as far as it is used


class Forked:
    """A forked process, used as `subprocess.Popen` is; it and its own are in one group."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, changes: str) -> None:
        self.returncode: int | None = None
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(_zygote()))
        self._lines = self._connection.makefile()
        program, *arguments = command
        asked = {
            "program": program,
            "arguments": arguments,
            "environment": {**environment},
            "log": str(log.resolve()),
            "changes": changes,
        }
        self._connection.sendall(json.dumps(asked).encode() + b"\n")
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        """Tell how it has ended, None if it has not."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended. Raises subprocess.TimeoutExpired if it has not in time."""
        if self.returncode is None:
            self._connection.settimeout(timeout or 1e-3)
            try:
                self.returncode = int(self._lines.readline())
            except (TimeoutError, OSError):  # a file of a socket that has timed out once says so in its own way
                self._lines = self._connection.makefile()
                raise subprocess.TimeoutExpired("a forked process", timeout or 0) from None
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to it; where a supervisor would end all of it, end all that is in its group."""
        if number != END_NOW:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
            return
        while True:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return
            self.poll()
            time.sleep(0.01)


_zygotes: list[tuple[subprocess.Popen[bytes], Path]] = []  # those of this process; the last may run
_one_at_a_time = threading.Lock()  # servers are started by several threads


def _zygote() -> Path:
    """Return the socket of the process of which servers are forked, started first if it does not run.

    It ends with this process.
    """
    with _one_at_a_time:
        if not _zygotes or _zygotes[-1][0].poll() is not None:
            _zygotes.append(_start_zygote())
        return _zygotes[-1][1]


def _start_zygote() -> tuple[subprocess.Popen[bytes], Path]:
    folder = Path(tempfile.mkdtemp(prefix="zygote"))
    path = folder / "socket"
    process = start([sys.executable, Path(__file__).with_name("zygote.py"), path], env=os.environ)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(end, process, signal.SIGTERM, 5)
    while not path.exists():
        if process.poll() is not None:
            raise RuntimeError(f"the process to be forked ended with status {process.returncode}")
        time.sleep(0.1)
    return process, path
