"""A copy of this checkout, thrown away afterwards, in which the tool's commands run as a user runs them."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from overlay_tools.downstream.port_state import in_progress
from overlay_tools.settings import Project, load_project
from overlay_tools.upstream.lockfile import load_lock

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """A command that has ended: what was wrong, "" if nothing, what it printed, how long it and the processor took."""

    error: str
    output: str
    seconds: float
    cpu: float

    @property
    def took(self) -> str:
        """Return how long it took, in words: on a busy machine that is not what the processor took."""
        return f"{self.seconds:6.1f} s, of the processor {self.cpu:5.1f} s"

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        """Return the hook and the outcome of each line of the table that `port` shows."""
        lines = iter(self.output.splitlines())
        heads = ("hook", "place", "outcome", "what was found")
        head = next((line for line in lines if all(f"  {name}" in line for name in heads)), "")
        starts = [head.find(name) for name in heads]  # a cell may be empty
        found = []
        for line in lines:
            hook, _, outcome = (line[a:b].strip() for a, b in itertools.pairwise(starts))
            if line[: starts[0]].strip() or not hook:
                break
            found.append((hook, re.sub(r" -?\d+$", "", outcome)))  # whatever the offset is
        return found


class ScratchCheckout:
    """A checkout of its own, with this one's files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lock = folder, load_lock(ROOT / "upstream.lock")
        words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"]
        listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)

    @property
    def project(self) -> Project:
        """Return the project that the checkout is."""
        return load_project(self.folder)

    @property
    def worktree(self) -> Path:
        """Return the worktree of the port that is in progress."""
        return self.folder / ".nox" / "porting" / "worktree"

    @property
    def is_porting(self) -> bool:
        """Tell whether a port is in progress, which can be gone on with or given up."""
        return in_progress(self.folder / ".nox" / "porting")

    def set_series(self, hooks: Mapping[str, str], version: str) -> None:
        """Put patches, by name, in the place of the series, each due for one release."""
        patches = self.folder / "patches"
        for path in patches.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        for name, text in hooks.items():
            (patches / name).mkdir()
            (patches / name / f"{version}.patch").write_bytes(text.encode("utf-8", "surrogateescape"))
        (patches / "series").write_text("".join(f"{name} =={version}\n" for name in hooks), encoding="utf-8")

    def run(self, *words: str | Path) -> Ended:
        """Run a command of the tool."""
        started, before = time.perf_counter(), _cpu_of_children()
        command = [sys.executable, "-m", "overlay_tools", *map(str, words)]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        assert not done.returncode or done.stderr, done.stdout
        error, cpu = done.stderr if done.returncode else "", _cpu_of_children() - before
        return Ended(error=error, output=done.stdout, seconds=seconds, cpu=cpu)


def _cpu_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system
