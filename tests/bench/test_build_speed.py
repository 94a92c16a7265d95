"""What the build promises of its speed and its memory; `nox -s bench-build` measures it and shows the figures.

It is timed beside two others in one run: unpack, apply and pack; and the least that any build must do.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from overlay_tools import console
from overlay_tools.patches.model import Hook
from overlay_tools.patches.series import load_series
from overlay_tools.settings import Project, cache_dir, load_project
from overlay_tools.subprocesses import git, run
from overlay_tools.upstream.download import check, fetch
from overlay_tools.upstream.lockfile import THIS_PYTHON, LockedWheel, Release, load_lock
from overlay_tools.wheels.builder import BuiltWheel, build_sglang
from overlay_tools.wheels.overlay_files import read_package

ROOT = Path(__file__).parents[2]
ROUNDS = 5
TIMES_FASTER, TIMES_SLOWER = 20, 4
MEGABYTES, SECONDS = 200, 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is timed: one release, its base wheel and where that is, the series."""

    project: Project
    release: Release
    wheel: LockedWheel
    base: Path
    hooks: Sequence[Hook]

    def build(self) -> BuiltWheel:
        check(self.base, self.wheel)
        return build_sglang(self.project, self.release, self.wheel, self.base, self.hooks)

    def unpack_and_pack(self, scratch: Path) -> Path:
        """Make the same wheel with the usual tools, and return it."""
        for name in ("tree", "packed"):
            shutil.rmtree(scratch / name, ignore_errors=True)
            (scratch / name).mkdir()
        wheel = [sys.executable, "-m", "wheel"]
        run([*wheel, "unpack", "--dest", scratch / "tree", self.base])
        (tree,) = (scratch / "tree").iterdir()
        for hook in self.hooks:
            if patch := hook.variant(self.release.version):
                assert git(["apply", "-p1", "-"], cwd=tree, stdin=patch.diff).returncode == 0
        for name, data in read_package(self.project, "sglang", self.release.version).items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(data)
        old, new = self.release.version, self.project.overlay_version(self.release.version)
        dist_info = (tree / f"sglang-{old}.dist-info").rename(tree / f"sglang-{new}.dist-info")
        metadata = dist_info / "METADATA"
        text = metadata.read_bytes().replace(f"\nVersion: {old}".encode(), f"\nVersion: {new}".encode(), 1)
        metadata.write_bytes(text)
        run([*wheel, "pack", "--dest-dir", scratch / "packed", tree])
        (packed,) = (scratch / "packed").glob("*.whl")
        return packed

    def do_the_least(self, result: Path, scratch: Path) -> None:
        """Do what any build must do that checks its base and writes its result."""
        hashlib.sha256(self.base.read_bytes()).hexdigest()
        shutil.copyfile(result, scratch / "copy.whl")

    def peak_memory(self) -> float:
        """Return the peak resident memory of the build command in megabytes, as the kernel counts it."""
        words = [sys.executable, "-m", "overlay_tools", "build", self.release.version]
        process = subprocess.Popen(words, cwd=self.project.root, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_maxrss / 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What was measured: two ratios of times, megabytes, seconds for all releases, the files of both ways."""

    faster: float
    slower: float
    memory: float
    whole: float
    built: Mapping[str, int]
    packed: Mapping[str, int]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """Measure everything once, and show it."""
    project, scratch, cases = load_project(ROOT), tmp_path_factory.mktemp("bench"), {}
    hooks = load_series(project.patches)
    for version, release in load_lock(project.lock).items():
        wheel = release.select(THIS_PYTHON, platform.machine())
        base = fetch(release, wheel, cache_dir())
        cases[version] = Case(project=project, release=release, wheel=wheel, base=base, hooks=hooks)
    case = cases[project.default]
    result = case.build().path
    packed = case.unpack_and_pack(scratch)
    seconds = alternate(
        {
            "build": case.build,
            "wheel unpack, git apply, wheel pack": lambda: case.unpack_and_pack(scratch),
            "sha256 of the base, copy of the result": lambda: case.do_the_least(result, scratch),
        }
    )
    ours, packing, least = (statistics.median(times) for times in seconds.values())
    memory = case.peak_memory()
    started = time.perf_counter()
    builts = [one.build() for one in cases.values()]
    whole = time.perf_counter() - started
    found = Figures(
        faster=packing / ours,
        slower=ours / least,
        memory=memory,
        whole=whole,
        built=checksums(result),
        packed=checksums(packed),
    )
    console.line("")
    console.table(f"sglang {project.default}, median of {ROUNDS} alternating rounds", rows(seconds, found, builts))
    return found


def alternate(ways: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Return how many seconds each way takes in each round; the rounds alternate between the ways."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def checksums(wheel: Path) -> dict[str, int]:
    """Return the checksum of every file, leaving out those that only one way writes or writes its own way."""
    own = ("/RECORD", "/WHEEL", "/_version.py", "sglang-overlay.json", ".sglang-overlay")
    with zipfile.ZipFile(wheel) as archive:
        return {i.filename: i.CRC for i in archive.infolist() if not i.is_dir() and not i.filename.endswith(own)}


def rows(seconds: Mapping[str, list[float]], found: Figures, builts: Sequence[BuiltWheel]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    lines = {
        f"+{sum(patch.added for patch in built.patches)}/-{sum(patch.removed for patch in built.patches)}"
        for built in builts
    }
    return [
        *(
            (name, f"{statistics.median(times) * 1000:7.0f} ms   ({min(times) * 1000:.0f} to {max(times) * 1000:.0f})")
            for name, times in seconds.items()
        ),
        ("faster than unpacking and packing", f"{found.faster:7.1f} times   (promised: at least {TIMES_FASTER})"),
        ("slower than the least", f"{found.slower:7.1f} times   (promised: at most {TIMES_SLOWER})"),
        ("peak memory of `overlay-tools build`", f"{found.memory:7.0f} MB   (promised: below {MEGABYTES})"),
        ("same files as packing gives", "yes" if found.built == found.packed else "no"),
        (f"all {len(builts)} releases", f"{found.whole:7.1f} s   (promised: below {SECONDS})"),
        ("upstream lines touched in each", ", ".join(sorted(lines))),
    ]


def test_the_build_is_much_faster_than_unpacking_and_packing(figures: Figures) -> None:
    assert figures.faster >= TIMES_FASTER


def test_the_build_is_little_slower_than_the_least_that_any_build_must_do(figures: Figures) -> None:
    assert figures.slower <= TIMES_SLOWER


def test_the_build_takes_little_memory(figures: Figures) -> None:
    assert figures.memory < MEGABYTES


def test_all_releases_are_built_in_half_a_minute(figures: Figures) -> None:
    assert figures.whole < SECONDS


def test_the_files_are_those_that_packing_gives(figures: Figures) -> None:
    assert len(figures.built) > 1000
    assert figures.built == figures.packed
