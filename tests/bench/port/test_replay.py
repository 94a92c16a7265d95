"""This project's own series, ported as it was written: from the oldest release to each later one."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from overlay_tools import console
from overlay_tools.settings import cache_dir, load_project
from overlay_tools.upstream.lockfile import load_lock

from bench.port.replay import replay

ROOT = Path(__file__).parents[3]


def test_the_hooks_of_the_oldest_release_are_ported_to_all_others() -> None:
    project = load_project(ROOT)
    lock = load_lock(project.lock)
    with console.step("Port our own series"), contextlib.redirect_stdout(io.StringIO()):
        counts = replay(project, lock, cache_dir())
    title = f"our own series, as it was for {next(iter(lock))}, ported to each release up to {list(lock)[-1]}"
    console.table(title, [(word, f"{n:5} hunks") for word, n in counts.items()])
    assert counts.keys() <= {"exact", "offset", "dropped"}
    assert counts["exact"] + counts["offset"] >= 2 * (len(lock) - 1)  # two hooks are due for every release
