"""A script that runs by itself in an engine's environment, and answers one line of JSON after another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from overlay_tools import console
from overlay_tools.errors import OverlayError
from overlay_tools.periodic import every_second
from overlay_tools.subprocesses import end, start

_PATIENCE = 10.0  # seconds that a script has to end


class Script:
    """A script that runs.

    Parameters: `process`; `log`, the file that takes what it says on standard error; `failed`, the kind of error that
    is raised where the process has ended.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, failed: type[OverlayError]) -> None:
        self._process, self.log, self._failed = process, log, failed
        self.said = self._line(0)

    def ask(self, **asked: object) -> dict[str, Any]:
        """Send a line, and return what is answered."""
        assert self._process.stdin is not None
        start = self.log.stat().st_size  # before it can say anything
        try:
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, as is found in a moment
        return self._line(start)

    def _line(self, start: int) -> dict[str, Any]:
        assert self._process.stdout is not None
        with every_second(lambda: console.follow(self.log, start)):  # how far it is
            line = self._process.stdout.readline()
        if not line:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE)
            if self._process.returncode == -signal.SIGKILL:
                what = "Its process was ended by SIGKILL, as where memory is short."
                raise self._failed(what, hint=f"See {self.log}.")
            said = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
            raise self._failed(f"Its process ended: {' '.join(said) or 'it said nothing'}.", hint=f"See {self.log}.")
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def open_script(
    python: Path,
    path: Path,
    job: Mapping[str, Any],
    *,
    env: Mapping[str, str],
    folder: Path,
    failed: type[OverlayError],
) -> Iterator[Script]:
    """Start a script with a job, wait for its first line, `said`, and end it at the end of the block.

    Parameters: `python`, the interpreter; `path`, of the script; `env`, added to this process's; `folder`, for the job
    and the log; `failed`, the kind of error that is raised where the process ends before that.
    """
    written, log = folder / f"{path.stem}.json", folder / f"{path.stem}.log"
    written.write_text(json.dumps(job), encoding="utf-8")
    with log.open("wb") as errors:
        process = start(
            [python, "-IW", "ignore", path, written],
            env={**os.environ, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    try:
        yield Script(process, log, failed)
    finally:
        end(process, signal.SIGTERM, _PATIENCE)
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):  # there may be something that it has not read
                cast("IO[bytes]", pipe).close()
