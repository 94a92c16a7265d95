"""Bring a copy of the checkout to where a page's reader is: python prepare.py unlock VERSION | prove | diff PAGE."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from overlay_tools.patches.series import load_series
from overlay_tools.proving.inputs import Inputs
from overlay_tools.proving.results import Result, save_results
from overlay_tools.proving.stages import stages_of
from overlay_tools.settings import load_project
from overlay_tools.upstream.lockfile import dump_lock, load_lock

from docs.pages import diff


def unlock(version: str) -> None:
    """Take a release out of the lock, as if it were not supported yet."""
    path = Path("upstream.lock")
    path.write_text(dump_lock({name: release for name, release in load_lock(path).items() if name != version}))


def prove() -> None:
    """Record every stage of every release as passed for what the checkout builds."""
    project = load_project(Path.cwd())
    inputs = Inputs(project, load_series(project.patches))
    passed = {"passed": 1, "failed": 0, "skipped": [], "seconds": 1.0}
    results = [
        Result(
            release=version,
            stage=stage,
            date="2026-01-01T00:00Z",
            commit="0" * 12,
            python=platform.python_version(),
            machine=platform.machine(),
            inputs=inputs.parts(release, stage),
            **passed,  # type: ignore[arg-type]
        )
        for version, release in load_lock(project.lock).items()
        for stage in stages_of(project, version)
    ]
    save_results(project.results, results)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["unlock", version]:
            unlock(version)
        case ["diff", page]:
            print(diff(page), end="")
        case _:
            prove()
