"""A copy of this checkout, thrown away afterwards, in which the tool's commands run as a user runs them."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from overlay_tools.downstream.port import Port
from overlay_tools.errors import OverlayError
from overlay_tools.settings import Project, cache_dir, load_project
from overlay_tools.upstream.lockfile import dump_lock, load_lock

ROOT = Path(__file__).parents[3]
HEADER = "Subject: s\nWhy: w\nApplies: {}\nForwarded: no: made up\nRemove-When: never\n\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """A command that has ended: what was wrong, None if nothing, all that it printed, and how long it took."""

    error: str | None
    output: str
    seconds: float

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        """Return the hook and the outcome of each line of the table that `port` shows."""
        lines = self.output.splitlines()
        start = next(
            (n for n, line in enumerate(lines) if line.split()[:3] == ["hook", "place", "outcome"]), len(lines)
        )
        found = []
        for line in lines[start + 1 :]:
            if not line.startswith("  "):
                break
            hook, _, outcome, *_ = re.split(r" {2,}", line.strip())
            found.append((hook, outcome.split()[0]))
        return found


class ScratchCheckout:
    """A checkout of its own, with this one's files.

    Parameters: `versions`, the releases that it has locked; `hooks`, by name their patches in place of this checkout's
    series, each due for all of these releases, None to keep that.
    """

    def __init__(self, folder: Path, versions: Sequence[str], hooks: Mapping[str, str] | None = None) -> None:
        self.folder, self.lock = folder, load_lock(ROOT / "upstream.lock")
        words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"]
        listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file() and not (hooks is not None and name.startswith("patches/")):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        locked = {version: self.lock[version] for version in versions}
        (folder / "upstream.lock").write_text(dump_lock(locked), encoding="utf-8")
        if hooks is not None:
            (folder / "patches").mkdir()
            shutil.copy2(ROOT / "patches" / "README.md", folder / "patches")
            self.set_hooks(hooks, versions[0])

    @property
    def project(self) -> Project:
        """Return the project that the checkout is."""
        return load_project(self.folder)

    def set_hooks(self, hooks: Mapping[str, str], version: str) -> None:
        """Make a series of patches by name, each the only variant of its hook, from a release on."""
        patches = self.folder / "patches"
        for path in patches.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        for name, text in hooks.items():
            (patches / name).mkdir()
            (patches / name / f"{version}.patch").write_bytes(text.encode("utf-8", "surrogateescape"))
        (patches / "series").write_text("".join(f"{name}\n" for name in hooks), encoding="utf-8")

    def run(self, *words: str | Path) -> Ended:
        """Run a command of the tool in a process of its own."""
        started = time.perf_counter()
        command = [sys.executable, "-m", "overlay_tools", *map(str, words)]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        return Ended(error=done.stderr if done.returncode else None, output=done.stdout, seconds=seconds)

    def port(self, version: str, take: Sequence[str] = ()) -> Ended:
        """Begin to port to a release, of which this checkout's lock is asked in place of an index."""
        return self._in_this_process(lambda port: port.start(version, self.lock.__getitem__, take=take))

    def go_on(self) -> Ended:
        """Go on with a port."""
        return self._in_this_process(lambda port: port.resume())

    def _in_this_process(self, act: Callable[[Port], object]) -> Ended:
        started, printed, error = time.perf_counter(), io.StringIO(), None
        with contextlib.redirect_stdout(printed):
            try:
                act(Port(self.project, cache_dir()))
            except OverlayError as raised:
                error = "\n".join([*raised.problems, raised.hint or ""])
        return Ended(error=error, output=printed.getvalue(), seconds=time.perf_counter() - started)
