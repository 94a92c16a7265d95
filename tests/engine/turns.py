"""Whose turn it is, where several processes run tests: a server of two ranks takes two cores.

A rank that waits for another one keeps its core busy, and each step takes as long as the slower one does.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """Wait for a test's turn, and keep it: beside those of other processes, or `alone`.

    Parameters: `folder`, the same for all processes.
    """
    with (folder / "room").open("w") as room:
        # Who waits to be alone keeps the door shut, or others would go in and out and never leave the room empty.
        with (folder / "door").open("w") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
