"""Tests that run beside one another, and those that run alone, in several processes."""

from __future__ import annotations

import fcntl
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.turns import turn

PATIENCE = 30  # seconds, until it counts as never
TESTS = Path(__file__).parents[2]
OTHER = """
import sys
from pathlib import Path
from engine.turns import turn
with turn(Path(sys.argv[1]), alone=sys.argv[2] == "alone"):
    print("in", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other(folder: Path, how: str) -> Iterator[subprocess.Popen[str]]:
    """Run another process that waits for its turn, and keeps it until its input ends."""
    command = [sys.executable, "-c", OTHER, str(folder), how]
    with subprocess.Popen(command, cwd=TESTS, stdin=-1, stdout=-1, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def leave(process: subprocess.Popen[str]) -> None:
    """End a process's turn."""
    assert process.stdin is not None
    process.stdin.close()


def is_in(process: subprocess.Popen[str]) -> bool:
    """Tell whether it is a process's turn, which may take a moment."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
    return bool(ready) and process.stdout.readline() == "in\n"


def waits(process: subprocess.Popen[str], folder: Path) -> bool:
    """Tell whether a process waits in the door, once it is there."""
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        with (folder / "door").open("w") as door:
            try:
                fcntl.flock(door, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        time.sleep(0.01)
    return False


def test_tests_run_beside_one_another(tmp_path: Path) -> None:
    with turn(tmp_path, alone=False), other(tmp_path, "beside") as process:
        assert is_in(process)


def test_one_that_is_alone_waits_for_others_and_they_for_it(tmp_path: Path) -> None:
    with other(tmp_path, "alone") as alone:
        assert is_in(alone)
        with other(tmp_path, "beside") as process:
            assert waits(process, tmp_path)
            leave(alone)
            assert is_in(process)
    with other(tmp_path, "alone") as alone:
        with turn(tmp_path, alone=False):
            assert waits(alone, tmp_path)
        assert is_in(alone)


def test_who_waits_to_be_alone_is_next(tmp_path: Path) -> None:
    """Not those that come after it: one after the other would keep it waiting for ever."""
    with other(tmp_path, "beside") as first:
        assert is_in(first)
        with other(tmp_path, "alone") as alone:
            assert waits(alone, tmp_path)
            with other(tmp_path, "beside") as late:
                leave(first)
                assert is_in(alone)
                leave(alone)
                assert is_in(late)
