"""Time the build beside two others in one run: unpack, apply and pack; and the least that any build must do."""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from overlay_tools import console
from overlay_tools.errors import OverlayError
from overlay_tools.patches.model import Hook
from overlay_tools.settings import Project
from overlay_tools.subprocesses import git, run
from overlay_tools.upstream.download import check
from overlay_tools.upstream.lockfile import LockedWheel, Release
from overlay_tools.wheels.builder import BuiltWheel, build_sglang

_ROUNDS = 5
_FASTER = 20.0
_SLOWER = 4.0
_MEMORY = 200.0
_ALL = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is timed: one release, its base wheel and where that is, the series."""

    project: Project
    release: Release
    wheel: LockedWheel
    base: Path
    hooks: Sequence[Hook]


def bench_build(case: Case, every: Sequence[Case]) -> None:
    """Time all three ways on one release alternately, then the build of `every` release; print medians and ratios.

    Raises OverlayError if a figure is not what the project promises, or the ways give different files.
    """
    with TemporaryDirectory() as folder:
        scratch = Path(folder)
        ways: dict[str, Callable[[], object]] = {
            "build": lambda: _build(case),
            "wheel unpack, git apply, wheel pack": lambda: _unpack_and_pack(case, scratch),
            "sha256 of the base, copy of the result": lambda: _least(case.base, result, scratch),
        }
        result = _build(case).path
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(_ROUNDS):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - started)
        packed = next((scratch / "packed").glob("*.whl"))
        same = _contents(packed) == _contents(result)
    ours, packing, least = (statistics.median(times) for times in seconds.values())
    memory = _peak_memory(case)
    rows = [
        (name, f"{statistics.median(times) * 1000:7.0f} ms   ({min(times) * 1000:.0f} to {max(times) * 1000:.0f})")
        for name, times in seconds.items()
    ]
    rows += [
        ("faster than unpacking and packing", f"{packing / ours:7.1f} times   (promised: at least {_FASTER:.0f})"),
        ("slower than the least", f"{ours / least:7.1f} times   (promised: at most {_SLOWER:.0f})"),
        ("peak memory of `overlay-tools build`", f"{memory:7.0f} MB   (promised: below {_MEMORY:.0f})"),
        ("same files as packing gives", "yes" if same else "no"),
    ]
    started = time.perf_counter()
    builts = [_build(one) for one in every]
    whole = time.perf_counter() - started
    lines = {
        (sum(patch.added for patch in built.patches), sum(patch.removed for patch in built.patches)) for built in builts
    }
    rows += [
        (f"all {len(every)} releases", f"{whole:7.1f} s   (promised: below {_ALL:.0f})"),
        ("upstream lines touched in each", ", ".join(f"+{added}/-{removed}" for added, removed in sorted(lines))),
    ]
    console.table(f"sglang {case.release.version}, median of {_ROUNDS} alternating rounds", rows)
    if not (same and packing / ours >= _FASTER and ours / least <= _SLOWER and memory < _MEMORY and whole < _ALL):
        raise OverlayError("A figure is not what the project promises.", hint="Run it again on an idle machine.")


def _build(case: Case) -> BuiltWheel:
    check(case.base, case.wheel)
    return build_sglang(case.project, case.release, case.wheel, case.base, case.hooks)


def _unpack_and_pack(case: Case, scratch: Path) -> None:
    """Make the same wheel with the usual tools."""
    for name in ("tree", "packed"):
        shutil.rmtree(scratch / name, ignore_errors=True)
        (scratch / name).mkdir()
    wheel = [sys.executable, "-m", "wheel"]
    run([*wheel, "unpack", "--dest", scratch / "tree", case.base])
    (tree,) = (scratch / "tree").iterdir()
    for hook in case.hooks:
        patch = hook.variant(case.release.version)
        if patch is not None:
            git(["apply", "-p1", "-"], cwd=tree, stdin=patch.diff)
    shutil.copytree(case.project.overlay / "sglang", tree / "sglang", dirs_exist_ok=True, ignore=_IGNORED)
    old, new = case.release.version, f"{case.release.version}+overlay.{case.project.revision}"
    dist_info = (tree / f"sglang-{old}.dist-info").rename(tree / f"sglang-{new}.dist-info")
    metadata = dist_info / "METADATA"
    metadata.write_bytes(metadata.read_bytes().replace(f"\nVersion: {old}".encode(), f"\nVersion: {new}".encode(), 1))
    run([*wheel, "pack", "--dest-dir", scratch / "packed", tree])


_IGNORED = shutil.ignore_patterns("__pycache__")


def _least(base: Path, result: Path, scratch: Path) -> None:
    """Do what no build that checks its base and writes its result can do without."""
    hashlib.sha256(base.read_bytes()).hexdigest()
    shutil.copyfile(result, scratch / "copy.whl")


def _contents(wheel: Path) -> dict[str, int]:
    """Return the checksum of every file, leaving out those that only one way writes or writes its own way."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            info.filename: info.CRC
            for info in archive.infolist()
            if not info.is_dir()
            and not info.filename.endswith(
                ("/RECORD", "/WHEEL", "/_version.py", "sglang-overlay.json", ".sglang-overlay")
            )
        }


def _peak_memory(case: Case) -> float:
    """Return the peak resident memory of the build command in megabytes, as the kernel counts it."""
    words = [sys.executable, "-m", "overlay_tools", "build", case.release.version]
    process = subprocess.Popen(words, cwd=case.project.root, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise OverlayError("The build whose memory was to be measured failed.", hint="Run `nox -s build`.")
    return usage.ru_maxrss / 1024
