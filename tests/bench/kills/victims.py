"""Commands to kill at any moment, and a look at what of them still runs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[3]
GONE = 10.0  # seconds after which nothing of a command may run
_MARK = "SGLANG_OVERLAY_VICTIM"

# A server that will not go: it, its workers in sessions of their own, and a daemon, none of which listens to signals.
STUBBORN_SERVER = """\
import http.server, os, signal, subprocess, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
for new_session in (False, True):
    subprocess.Popen(sleep, start_new_session=new_session)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sleep[0], sleep)
    os._exit(0)
open("up", "w").close()
if "--port" not in sys.argv:
    time.sleep(600)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *arguments): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""

# The tool, with this environment for a release's, in which the server is the one above, and with little patience.
TOOL = """\
import sys, time
from contextlib import nullcontext
from pathlib import Path
from overlay_tools import cli, subprocesses
from overlay_tools.commands import serve, test_engine
from overlay_tools.engines import server
from overlay_tools.report import collect
python = Path.cwd() / "environment" / "bin" / "python"
serve.open_engine = test_engine.open_engine = lambda *arguments, **options: nullcontext(python)
serve.ask = lambda *arguments: None
subprocesses._PATIENCE = server.Server.__init__.__kwdefaults__["grace"] = 2.0
serve.demo_model.prepare = lambda *arguments: subprocesses.run([python, "-m", "sglang.launch_server"])
def check_for_ever(*arguments):
    Path("up").touch()
    time.sleep(600)
collect._check_release = check_for_ever
sys.exit(cli.main(sys.argv[1:]))
"""
TEST = """\
import os, sys
from pathlib import Path
from overlay_tools.engines.server import Server

def test_server(tmp_path):
    with Server(Path(sys.executable), tmp_path, [], env=os.environ, log=tmp_path / "log", grace=0):
        Path("serving").touch()
        __import__("time").sleep(600)
"""
NOXFILE = f"""\
import importlib.util, os, sys, nox
spec = importlib.util.spec_from_file_location("checkout", {str(REPOSITORY / "noxfile.py")!r})
checkout = importlib.util.module_from_spec(spec)
spec.loader.exec_module(checkout)
from overlay_tools.surroundings import users_python
os.environ.update(users_python(os.environ))  # the stand-ins lie on PYTHONPATH, which a session would not see

@nox.session(venv_backend="none")
def victim(session):
    checkout.run(session, sys.executable, *session.posargs)
"""
COMMANDS = {
    "serve": ["tool.py", "serve", "--model", "model", "--keep"],
    "test-engine": ["tool.py", "test-engine", "1.0", "--", "tests/engine"],
    "status": ["tool.py", "status"],
    "run": ["tool.py", "serve"],
    "pytest": ["-m", "pytest", "tests/engine"],
}


def make_stand_in(folder: Path) -> dict[str, str]:
    """Write into a checkout what COMMANDS run there; return the environment to run them in."""
    files = {"sglang/launch_server.py": STUBBORN_SERVER, "tool.py": TOOL, "tests/engine/test_server.py": TEST}
    for name, text in {**files, "model/config.json": "{}", "sglang/__init__.py": ""}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    python = folder / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}


def beneath_nox(folder: Path) -> list[str]:
    """Return the arguments of Python that have nox run a Python in a folder as the sessions of this checkout do."""
    (folder / "victim.py").write_text(NOXFILE)
    if not (folder / "ci").exists():
        (folder / "ci").symlink_to(REPOSITORY / "ci")
    return ["-m", "nox", "-f", "victim.py", "-s", "victim", "--"]


def _take_signals() -> None:
    """Take signals as a program does that a person has started: those that this one ignores, it would ignore too.

    A shell's background job ignores Ctrl-C, and what nohup has started the end of its terminal.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@dataclass
class Victim:
    """A command that has been started.

    `processes`: those of it that were seen, beside those that carry its mark in their environment.
    """

    process: subprocess.Popen[str]
    mark: str
    processes: set[psutil.Process] = field(default_factory=set)

    @classmethod
    def start(cls, words: Sequence[str | Path], cwd: Path, env: Mapping[str, str]) -> Victim:
        """Start a command in a session of its own, its output kept."""
        mark = uuid.uuid4().hex
        process = subprocess.Popen(
            words,
            cwd=cwd,
            env={**os.environ, **env, _MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=_take_signals,
        )
        return cls(process, mark)

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def wait_for(self, path: Path) -> None:
        """Wait until the command has made a file."""
        deadline = time.monotonic() + 60
        while not path.exists():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, f"{path} was not made"
            time.sleep(0.02)

    def kill(self, number: int, *, group: bool = False, pid: int | None = None, patience: float = 0.0) -> float:
        """Send a signal, and return after how many seconds nothing of the command runs any more.

        Parameters: `group`, whether it goes to all of the command's group; `pid`, the process that it goes to;
        `patience`, seconds that this process has to clear up.
        Fails if something still does GONE seconds after that has ended or should have, and ends it.
        """
        self.look()
        target = pid or self.process.pid
        began = time.monotonic()
        ended = began + patience
        if self.process.poll() is None:
            (os.killpg if group else os.kill)(target, number)
        while left := self.running():
            if all(process.pid != target for process in left):
                ended = min(ended, time.monotonic())
            if time.monotonic() - ended > GONE:
                names = [" ".join(process.cmdline())[-150:] for process in left if process.is_running()]
                self.end()
                raise AssertionError(f"{GONE} s after {signal.Signals(number).name} still running: {names}")
            self.process.poll()
            time.sleep(0.05)
        return time.monotonic() - began

    def look(self) -> None:
        """Note the processes that have come of the command until now."""
        if psutil.pid_exists(self.process.pid):
            self.processes |= {*psutil.Process(self.process.pid).children(recursive=True)}

    def running(self) -> list[psutil.Process]:
        """Return what runs of the command."""
        return [process for process in psutil.process_iter() if self._is_part(process)]

    def named(self, word: str) -> list[psutil.Process]:
        """Return what runs of the command and has this word in its command line, or as its name."""
        found = []
        for process in self.running():
            with contextlib.suppress(psutil.NoSuchProcess):
                if word in process.cmdline() or word == process.name():
                    found.append(process)
        return found

    def _is_part(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return process in self.processes or process.environ().get(_MARK) == self.mark
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    def end(self) -> None:
        """End what runs, as a test does once it is over."""
        while left := self.running():
            for process in left:
                process.kill()
            self.process.poll()
            time.sleep(0.05)
        self.process.wait()

    def said(self) -> str:
        """Return what the command has printed, once it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.read()
