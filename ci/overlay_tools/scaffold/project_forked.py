"""What a plugin project's tests start, which starts as for users: each project has a copy of this file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import overlay_tools.supervisor as supervisor
from overlay_tools.scaffold.project_server import Server as ForkedServer
from overlay_tools.scaffold.project_server import start

__all__ = ["ForkedServer", "running"]


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, a file with arguments, its output in the file `log`, and end all of it."""
    process = start([sys.executable, *command], {**os.environ, **environment}, log)
    try:
        yield process
    finally:
        process.send_signal(supervisor.END_NOW)
        process.wait()
