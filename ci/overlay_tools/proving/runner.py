"""Every stage of every release that is not proven yet: one environment after the other, in a bounded disk space."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from overlay_tools import console
from overlay_tools.engines.environment import engine_environment
from overlay_tools.errors import MatrixError, OverlayError
from overlay_tools.patches.series import load_series
from overlay_tools.periodic import every_second
from overlay_tools.proving.inputs import Inputs
from overlay_tools.proving.results import Result, commit_of, load_results, save_results
from overlay_tools.proving.stages import PLUGIN_STAGE, run_stage, stages_of
from overlay_tools.settings import Project, load_project
from overlay_tools.upstream.lockfile import load_lock

# An environment takes up to 9 GB, and so does a cache of what one release pins. A cache that has outgrown CACHE is
# emptied before the next release is installed, so the folder stays under CACHE + 9 GB.
CACHE = 14e9
NEEDED = CACHE + 9e9
# Seconds, until a run has measured them.
_GUESS = {"static": 15.0, "kernels": 60.0, "decisions": 90.0, "engine": 720.0, "plugin": 240.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleasePlan:
    """A release with the stages that are to be run."""

    version: str
    stages: Sequence[str]


def plan_matrix(
    project: Project, versions: Sequence[str], python: str | None = None, *, again: bool
) -> list[ReleasePlan]:
    """Return what is not proven yet for what the checkout holds, or with `again` everything, in the order given.

    Parameters: `python`, as "3.12", the one to be proven, this one if None.
    """
    lock, results = load_lock(project.lock), load_results(project.results)
    now = Inputs(project, load_series(project.patches), python)
    found = []
    for version in versions:
        stages = [
            stage
            for stage in stages_of(project, version)
            if again
            or (old := results.get((version, stage))) is None
            or not old.green
            or now.differences(old, lock[version])
        ]
        if stages:
            found.append(ReleasePlan(version=version, stages=stages))
    return found


@dataclass(kw_only=True, slots=True)
class Peak:
    """The most bytes that were in use: of the `disk`, by environments and cache together, and of the `memory`."""

    disk: float = 0.0
    memory: float = 0.0


def run_matrix(project: Project, plan: Sequence[ReleasePlan], python: str | None) -> Peak:
    """Run what is planned, each release in an environment made for it and removed after it.

    Each result is written as it comes: a run that is cut short goes on where it stopped.
    Returns the most that it took.
    Raises MatrixError if another run is in progress or the disk has too little room, and, once everything has been run,
    if anything failed; its cause is the first error for which a stage has no result.
    """
    folder = project.root / ".nox" / "releases"  # .nox/matrix is the environment of the session itself
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    with _only_run(folder):
        shutil.rmtree(folder / "environment", ignore_errors=True)  # of a run that was killed
        _check_room(folder)
        os.environ["UV_CACHE_DIR"] = str(folder / "cache")
        peak, red, cause = Peak(), list[str](), None
        clock = _Clock(plan, load_results(project.results))
        for number, item in enumerate(plan, 1):
            console.line(f"[{number}/{len(plan)}] sglang {item.version}", style="bold")
            try:
                if _size(folder / "cache") > CACHE:
                    shutil.rmtree(folder / "cache")
                for result, log in _run_stages(project, item, python, folder, peak):
                    clock.done(result)
                    console.line(f"    {describe(result)}; {clock.left()}", style="green" if result.green else "red")
                    if not result.green:
                        red.append(f"{item.version} {result.stage}: {describe(result)}; see {log}")
            except OverlayError as error:  # a release that cannot be installed does not keep others from being tested
                console.fail(error)
                red.append(f"{item.version}: {error.problems[0].splitlines()[0]}")
                cause = cause or error
            finally:
                peak.disk = max(peak.disk, _size(folder))
                shutil.rmtree(folder / "environment", ignore_errors=True)
    if red:
        raise MatrixError(*red, hint="`nox -s matrix` runs what is not green again.") from cause
    return peak


def _run_stages(
    project: Project, item: ReleasePlan, python: str | None, folder: Path, peak: Peak
) -> Iterator[tuple[Result, Path]]:
    """Run the stages of one release; yield each result once it is written, with the log that has the output."""
    release = load_lock(project.lock)[item.version]
    commit, inputs = commit_of(project.root), Inputs(project, load_series(project.patches), python)
    ran_on = {stage: inputs.parts(release, stage) for stage in item.stages}
    for plugin in (False, True):
        stages = [stage for stage in item.stages if (stage in PLUGIN_STAGE) == plugin]
        if not stages:
            continue
        place = folder / "environment"
        shutil.rmtree(place, ignore_errors=True)
        # The tests are the CPU's, also where there is a GPU: a result is the same on every machine of a kind.
        with engine_environment(project, item.version, python, place, gpu=False, plugin=plugin) as interpreter:
            for stage in stages:
                log = folder / "logs" / f"{item.version}-{stage}.log"
                with console.step(f"  {stage}"), _watched_memory(peak):
                    result = run_stage(project.root, item.version, stage, interpreter, log, commit, ran_on[stage])
                _check_unchanged(project, result, python)
                results = {**load_results(project.results), (item.version, stage): result}
                save_results(project.results, results.values())
                yield result, log
        peak.disk = max(peak.disk, _size(folder))  # the next one takes the place of this environment


def _check_unchanged(project: Project, result: Result, python: str | None) -> None:
    """Raise MatrixError if the checkout no longer has what a result is of."""
    project = load_project(project.root)
    release = load_lock(project.lock)[result.release]
    if changed := Inputs(project, load_series(project.patches), python).differences(result, release):
        what = f"While {result.stage} of {result.release} ran"
        raise MatrixError(
            *(f"{what}, {words}: its result is not recorded." for words in changed),
            hint="Run it again, and leave the checkout as it is until it ends.",
        )


def describe(result: Result) -> str:
    """Say in a few words how a stage went."""
    words = [f"{result.passed} passed"] + [f"{result.failed} failed"] * bool(result.failed)
    words += [f"skipped: {reason}" for reason in result.skipped]
    words += [f"left out: {model}" for model in result.left_out]
    return f"{', '.join(words)} in {result.seconds:.0f} s"


class _Clock:
    """Tells how long the rest will take, by what each stage took so far."""

    def __init__(self, plan: Sequence[ReleasePlan], results: Mapping[tuple[str, str], Result]) -> None:
        self._left = [stage for item in plan for stage in item.stages]
        self._took = {stage: [r.seconds for r in results.values() if r.stage == stage and r.green] for stage in _GUESS}
        self._started = time.monotonic()

    def done(self, result: Result) -> None:
        self._left.remove(result.stage)
        self._took[result.stage].append(result.seconds)

    def left(self) -> str:
        seconds = sum(self._guess(stage) for stage in self._left)
        return f"{_minutes(time.monotonic() - self._started)} gone, about {_minutes(seconds)} left"

    def _guess(self, stage: str) -> float:
        return sum(took) / len(took) if (took := self._took[stage]) else _GUESS[stage]


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 3600} h {int(seconds) // 60 % 60:02} min"


@contextmanager
def _watched_memory(peak: Peak) -> Iterator[None]:
    """Note what memory is in use during a block that was not before it, by whatever process."""
    before = psutil.virtual_memory().available

    def look() -> None:
        peak.memory = max(peak.memory, before - psutil.virtual_memory().available)

    with every_second(look):
        yield


@contextmanager
def _only_run(folder: Path) -> Iterator[None]:
    try:
        held = FileLock(folder.with_suffix(".lock")).acquire(blocking=False)
    except Timeout:
        raise MatrixError(f"Another run is in progress in {folder}.", hint="Wait for it, or end it.") from None
    with held:
        yield


def _check_room(folder: Path) -> None:
    free = shutil.disk_usage(folder).free + _size(folder)
    if free < NEEDED:
        raise MatrixError(
            f"{folder} has room for {free / 1e9:.0f} GB; the environments and their cache need {NEEDED / 1e9:.0f} GB.",
            hint="Free some disk space.",
        )


def _size(folder: Path) -> float:
    """Return the bytes that a folder takes, each file once however many links it has."""
    return float(sum({status.st_ino: status.st_blocks * 512 for status in _statuses(folder)}.values()))


def _statuses(folder: Path) -> Iterator[os.stat_result]:
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                yield (Path(root) / name).lstat()
            except FileNotFoundError:
                continue
