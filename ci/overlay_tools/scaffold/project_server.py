"""A real `sglang.launch_server` process, for the tests of a plugin project: each has a copy of this file."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import overlay_tools.supervisor as supervisor
from overlay_tools.engines.loopback import HOST, open_directly, without_proxy

_LAST_LINES = 30
_TIMEOUT = 600.0  # seconds that a server may take to come up


class ServeError(Exception):
    """Report a server that did not come up."""


class Server:
    """A server on this machine's loopback address, for the length of a `with` block.

    Parameters: `python`, the interpreter of its environment; `model`, the checkpoint's folder; `flags`, further flags
    of `sglang.launch_server`; `env`, added to this process's environment; `log`, the file that takes its output;
    `grace`, seconds that it may take to end by itself. Whatever ends this process ends the server too.
    Raises ServeError, with the server's own last lines, if it dies or does not come up in time.
    """

    def __init__(
        self, python: Path, model: Path, flags: Sequence[str], *, env: Mapping[str, str], log: Path, grace: float = 20.0
    ) -> None:
        self.python, self.model, self.flags, self.env, self.log, self.grace = python, model, flags, env, log, grace
        self.port = _free_port()

    @property
    def url(self) -> str:
        """Return the address that the server answers on."""
        return f"http://{HOST}:{self.port}"

    def __enter__(self) -> Server:
        command: list[str | Path] = [self.python, "-m", "sglang.launch_server", "--model-path", self.model]
        command += ["--host", HOST, "--port", str(self.port), *self.flags]
        self.process = start(command, without_proxy({**os.environ, **self.env}), self.log)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server and every process that it started."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(self.grace)
        except subprocess.TimeoutExpired:
            self.process.send_signal(supervisor.END_NOW)
            self.process.wait()

    def _wait(self) -> None:
        until = time.monotonic() + _TIMEOUT
        while not self._healthy():
            if self.process.poll() is not None:
                raise self._failure(f"The server ended with status {self.process.returncode}")
            if time.monotonic() > until:
                raise self._failure(f"The server did not come up within {_TIMEOUT:.0f} s")
            time.sleep(1)

    def _healthy(self) -> bool:
        try:
            with open_directly(f"{self.url}/health_generate", timeout=30) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _failure(self, what: str) -> ServeError:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        return ServeError("\n".join([f"{what}. The last lines of {self.log}:", *lines]))


def start(command: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a program with its output in the file `log`; whatever ends this process ends all of it."""
    supervised = [sys.executable, "-IS", supervisor.__file__, str(os.getpid()), supervisor.APART]
    with log.open("wb") as output:
        return subprocess.Popen(
            [*supervised, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _free_port() -> int:
    """Find a free port beneath those of outgoing connections; 0.5.12 listens for gRPC on the port 10,000 above."""
    for port in random.sample(range(20_000, 32_768), 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise ServeError("No free port from 20000 to 32767 was found.")
