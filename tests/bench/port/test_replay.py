"""This project's own series, ported as it was written: from the oldest release to each later one."""

from __future__ import annotations

from pathlib import Path

from overlay_tools import console
from overlay_tools.settings import cache_dir, load_project
from overlay_tools.upstream.lockfile import load_lock

from bench.port.replay import replay

ROOT = Path(__file__).parents[3]


def test_the_series_of_the_oldest_release_is_ported_to_all_others() -> None:
    project = load_project(ROOT)
    lock = load_lock(project.lock)
    counts = replay(project, lock, cache_dir())
    shown = ", ".join(f"{n} {word}" for word, n in counts.items())
    console.line(f"Replay, {next(iter(lock))} to {list(lock)[-1]}: {shown}; none wrong")
    assert counts.keys() <= {"exact", "offset", "dropped"}
    assert counts["exact"] + counts["offset"] >= 2 * (len(lock) - 1)  # two hooks are due for every release
