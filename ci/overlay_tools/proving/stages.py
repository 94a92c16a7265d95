"""The stages of a release's tests, and how one is run."""

from __future__ import annotations

import platform
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

from overlay_tools.engines import engine_config
from overlay_tools.errors import OverlayError
from overlay_tools.proving.results import Result
from overlay_tools.settings import Project
from overlay_tools.subprocesses import run, run_logged

# A stage's tests are all that lie in its folders. Those that start servers take longest, so they come last: what
# another stage can find is found sooner there.
STAGES: dict[str, tuple[str, ...]] = {
    "static": ("tests/static",),
    "kernels": ("tests/engine/kernels", "tests/gpu/kernels"),
    "decisions": ("tests/engine/decisions",),
    "engine": ("tests/engine/drop_in", "tests/engine/serving", "tests/models"),
}
# One more, of the releases that the settings name for the plugin, with that beside upstream's own wheel: whatever
# depends on how our models come into a server.
PLUGIN_STAGE: dict[str, tuple[str, ...]] = {
    "plugin": (
        "tests/engine/decisions",
        "tests/engine/serving/test_checked_updates.py",
        "tests/engine/serving/test_fresh_processes.py",
        "tests/engine/serving/test_strict_loading.py",
        "tests/plugin/test_doctor.py",
        "tests/plugin/test_faults.py",
        "tests/plugin/test_processes.py",
        "tests/plugin/test_side_by_side.py",
    )
}
# What one pytest runs in an environment: of the drop-in wheel; of upstream's wheel and the plugin, which has no drop-in
# wheel and the same kernels; of a machine with a CUDA GPU.
ENGINE_TESTS = (*STAGES["kernels"], *STAGES["decisions"], *STAGES["engine"])
PLUGIN_TESTS = ("tests/engine/decisions", "tests/engine/serving", "tests/models", "tests/plugin")
GPU_TESTS = ("tests/gpu",)

# How all tests of an engine run: in two processes, of which each has files of its own, as a file's tests share servers.
# With its servers, each takes four gigabytes.
IN_PROCESSES = ("--numprocesses=logical", "--maxprocesses=2", "--dist=loadfile")


# How pytest ends once it has run all tests that there are, and none failed: it ran some, or there are none.
_ENDED = (0, 5)

# What an environment has of what a release computes with, said in a few words.
_INSTALLED = """
from importlib.metadata import distributions
names = ("torch", "triton", "sgl-kernel", "sglang-kernel")
found = {d.name: d.version for d in distributions() if d.name in names}
print(", ".join(f"{name} {found[name]}" for name in names if name in found))
"""


def stages_of(project: Project, version: str) -> list[str]:
    """Return the stages that a release has to pass."""
    return [*STAGES, *(PLUGIN_STAGE if version in project.plugin else ())]


def tests_of(stage: str) -> tuple[str, ...]:
    """Return the folders and files of a stage's tests; none of a stage that is not known."""
    return {**STAGES, **PLUGIN_STAGE}.get(stage, ())


def run_stage(
    root: Path, version: str, stage: str, python: Path, log: Path, commit: str, inputs: Mapping[str, str]
) -> Result:
    """Run one stage of a release.

    Parameters: `python`, of the environment that holds the release's wheels; `log`, the file that takes the output;
    `commit` and `inputs`, of the result.
    Raises OverlayError if pytest came to no result, or ended before all tests had run.
    """
    static = stage == "static"
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        interpreter = sys.executable if static else python
        words: list[str | Path] = [interpreter, "-m", "pytest", f"--junitxml={report}"]
        # An engine environment holds what the release pins, whose warnings are not ours to mend.
        words += ["-k", f"[{version}]"] if static else ["-W", "default", *IN_PROCESSES]
        started = time.monotonic()
        status = run_logged([*words, *tests_of(stage)], cwd=root, env={} if static else engine_config.ENV, log=log)
        seconds = time.monotonic() - started
        if not report.exists():
            raise OverlayError(f"pytest ended without a report on {stage} of {version}.", hint=f"See {log}.")
        found = ET.parse(report)
    cases = list(found.iter("testcase"))
    failed = sum(any(case.find(kind) is not None for kind in ("failure", "error")) for case in cases)
    if status not in _ENDED and not failed:
        raise OverlayError(
            f"pytest ended with status {status} on {stage} of {version}, though no test failed: not all have run.",
            hint=f"See {log}.",
        )
    skips = [skip.get("message", "") for case in cases for skip in case.findall("skipped")]
    return Result(
        release=version,
        stage=stage,
        passed=len(cases) - failed - len(skips),
        failed=failed,
        skipped=sorted(set(skips)),
        left_out=sorted({each.get("value", "") for each in found.iter("property") if each.get("name") == "left out"}),
        seconds=round(seconds, 1),
        python=run([interpreter, "-c", "import platform; print(platform.python_version())"]).stdout.strip(),
        machine=platform.machine(),
        date=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
        commit=commit,
        inputs=inputs,
        installed="" if static else run([interpreter, "-c", _INSTALLED]).stdout.strip(),
    )
