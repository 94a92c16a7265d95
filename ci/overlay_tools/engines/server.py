"""A real `sglang.launch_server` process: started, waited for, stopped with all its children."""

from __future__ import annotations

import os
import random
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil

from overlay_tools import console
from overlay_tools.engines.loopback import HOST, open_directly, without_proxy
from overlay_tools.errors import ServeError
from overlay_tools.subprocesses import Shown, end, start

_LAST_LINES = 30
_TICK = 0.25  # seconds between two looks whether a server is up


class Server:
    """A server on this machine's loopback address, for the length of a `with` block.

    Parameters: `python`, the interpreter of its environment; `model`, the checkpoint's folder; `flags`, further ones
    of `sglang.launch_server`; `env`, added to this process's environment; `log`, the file that takes its output;
    `port`, the port to listen on, or a free one; `timeout`, seconds it may take to come up; `waiting`, called every
    second until then with the seconds waited; `stopping`, called when it is to stop; `grace`, seconds that it may take
    to end by itself then. Whatever ends this process ends the server too.
    Raises ServeError, with the server's own last lines, if it dies or does not come up in time.
    """

    _health = "/health_generate"  # what a server that is up answers

    def __init__(
        self,
        python: Path,
        model: Path,
        flags: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        port: int | None = None,
        timeout: float = 600.0,
        waiting: Callable[[int], None] = lambda seconds: None,
        stopping: Callable[[], None] = lambda: None,
        grace: float = 20.0,
    ) -> None:
        self.python, self.model, self.flags, self.env, self.log = python, model, flags, env, log
        if port is None:
            port, claim = _free_port()
            weakref.finalize(self, claim.close)
        self.port = port
        self.timeout, self.waiting, self.stopping, self.grace = timeout, waiting, stopping, grace

    @property
    def url(self) -> str:
        """Return the address that the server answers on."""
        return f"http://{HOST}:{self.port}"

    @property
    def command(self) -> list[str]:
        """Return the words that start it."""
        words = [self.python, "-m", "sglang.launch_server", "--model-path", self.model]
        return [*map(str, words), "--host", HOST, "--port", str(self.port), *self.flags]

    @property
    def for_a_shell(self) -> str:
        """Return the line that starts it in a shell: what it changes of the environment, and its command."""
        environment = sorted(without_proxy({**os.environ, **self.env}).items())
        changed = [f"{name}={shlex.quote(value)}" for name, value in environment if os.environ.get(name) != value]
        return " ".join([*changed, shlex.join(self.command)])

    def __enter__(self) -> Server:
        check_free(self.port)
        self._shown = Shown(self.command)
        self.process = self._start(without_proxy({**os.environ, **self.env}))
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

    def check(self) -> None:
        """Raise ServeError, with the server's last lines, if it no longer runs."""
        if self.process.poll() is not None:
            raise self.failure(f"The server ended with status {self.process.returncode}")

    def failure(self, what: str, hint: str = "") -> ServeError:
        """Return an error that shows the server's own last lines, and says where to look after what `hint` says."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        said, where = "It printed nothing.", f"See whether `{self.python} -m sglang.launch_server --help` runs."
        if lines:
            said, where = "Its last lines:\n" + "\n".join(lines), f"Its whole output is in {self.log}."
        return ServeError(f"{what}. {said}", hint=f"{hint} {where}".lstrip())

    def stop(self) -> None:
        """End the server and every process that it started."""
        try:
            self.stopping()
        finally:
            end(self.process, signal.SIGTERM, self.grace)
            self._shown.ended(self.process.returncode)

    def _start(self, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as output:
            return start(self.command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def _wait(self) -> None:
        started, said = time.monotonic(), -1
        while not self._healthy():
            self.check()
            if others := self._others():
                raise self.failure(f"Port {self.port} was taken by {others} while the server started")
            waited = time.monotonic() - started
            if waited > self.timeout:
                what = f"The server did not come up within {self.timeout:.0f} s"
                raise self.failure(what, "--timeout gives it more.")
            if int(waited) > said:
                said = int(waited)
                self.waiting(said)
            console.follow(self.log)  # it loads shards, or captures graphs
            time.sleep(_TICK)

    def _healthy(self) -> bool:
        """Tell whether this server is up: an answer of another that listens on its port does not count."""
        if not self._listeners() or self._others():
            return False
        try:
            with open_directly(f"{self.url}{self._health}", timeout=30) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _listeners(self) -> list[int | None]:
        """Return the processes that listen on the port; None is one of another user."""
        found = _processes_on(self.port)
        # Processes are looked through before ports are: one that begins to listen in between is not known yet.
        return _processes_on(self.port) if None in found else found

    def _others(self) -> str:
        """Return, in words, who listens on the port and is not of this server's session; nothing if no one is."""
        pids = [pid for pid in self._listeners() if pid is None or self._is_strange(pid)]
        return ", ".join("a process of another user" if pid is None else f"process {pid}" for pid in pids)

    def _is_strange(self, pid: int) -> bool:
        try:
            return os.getsid(pid) != self.process.pid
        except ProcessLookupError:  # it has ended since, and listens no more
            return False


def _processes_on(port: int) -> list[int | None]:
    connections = psutil.net_connections("tcp")
    return [each.pid for each in connections if each.status == psutil.CONN_LISTEN and each.laddr.port == port]


def check_free(port: int) -> None:
    """Raise ServeError if something listens on a port."""
    if not _is_free(port):
        raise ServeError(f"Port {port} is in use.", hint="Name another with --port.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _free_port() -> tuple[int, socket.socket]:
    """Find a free port, and claim it from other servers of this machine for as long as the socket is open.

    A server takes a while to listen on its port. Another one, started meanwhile, must not listen there first: it would
    be taken for this one.
    """
    # Beneath the ports that the system gives to outgoing connections, and far from the last: 0.5.12 listens for gRPC on
    # the port 10,000 above.
    for port in random.sample(range(20_000, 32_768), 200):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0sglang-overlay-port-{port}")  # no file: a name that ends with the process, if not before
        except OSError:
            claim.close()
            continue
        if _is_free(port):
            return port, claim
        claim.close()
    raise ServeError("No free port from 20000 to 32767 was found.", hint="Name one with --port.")
