"""Call lm-eval in an engine's environment: evaluate_script.py does the work there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from overlay_tools import console
from overlay_tools.engines.server import Server
from overlay_tools.engines.venv import open_environment
from overlay_tools.errors import REPORT, AccuracyError
from overlay_tools.proving.accuracy.scores import Score
from overlay_tools.proving.accuracy.tasks import Task
from overlay_tools.proving.script import Script, open_script

LM_EVAL = "0.4.13"
_SCRIPT = Path(__file__).with_name("evaluate_script.py")


@contextmanager
def open_lm_eval(python: Path, minor: str | None) -> Iterator[Path]:
    """Install lm-eval for an engine's environment, in a folder of it, and yield that of its packages.

    Nothing that the engine imports changes. What it has is not installed a second time: both together are lm-eval's.
    Parameters: `python`, the interpreter of the engine's environment; `minor`, its minor version as
    `engine_environment` takes it.
    """
    engine = python.parents[1]
    there = sorted(path.name.partition("-")[0] for path in engine.glob("lib/python*/site-packages/*.dist-info"))
    folder = engine / "lm-eval"
    with ExitStack() as stack:
        with console.step(f"Install lm-eval {LM_EVAL} for it"):
            requirement = f"lm-eval[api]=={LM_EVAL}"
            interpreter = stack.enter_context(open_environment(folder, minor, [], [requirement], there))
        [packages] = interpreter.parents[1].glob("lib/python*/site-packages")
        yield packages


class Harness:
    """lm-eval with some tasks, which asks one model after another."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def ask_server(self, server: Server, at_once: int) -> dict[str, Score]:
        """Ask a server so many prompts at once, and return its scores by the tasks' names."""
        try:
            return self._scores("The engine cannot be asked", server=server.url, at_once=at_once)
        except AccuracyError:
            server.check()  # its own last lines say more, where it has ended
            raise

    def ask_reference(self, engine: Mapping[str, Score]) -> dict[str, Score]:
        """Ask the reference model what the engine was asked, whose scores are given."""
        found = self._scores("The reference model cannot be asked")
        if others := [name for name, score in found.items() if not score.matches(engine[name])]:
            raise AccuracyError(
                f"{', '.join(others)}: the engine and the reference model were asked other prompts.",
                hint=f"If --engine names a file, take one of the same tasks, settings and tokenizer. Else: {REPORT}",
            )
        return found

    def _scores(self, what: str, **asked: object) -> dict[str, Score]:
        found = self._script.ask(**asked)
        if "problem" in found:
            raise AccuracyError(f"{what}: {found['problem']}.", hint=f"All that was said is in {self._script.log}.")
        return {name: Score(**score) for name, score in found["scores"].items()}


@contextmanager
def open_harness(
    python: Path,
    packages: Path,
    job: Mapping[str, Any],
    env: Mapping[str, str],
    folder: Path,
    tasks: Sequence[Task],
    limit: int | None,
) -> Iterator[Harness]:
    """Open tasks, for the length of a block.

    Parameters: `python`, the interpreter of the engine's environment; `packages`, as of `open_lm_eval`; `job` and
    `env`, as of `proving.reference.Reference`, with the `dtype` of the reference model, and whether one is to be asked,
    `beside`; `folder`, for its log; `limit`,
    how many documents of each task are asked, None for all.
    Raises AccuracyError if a task cannot be had, or there is no reference model.
    """
    written = {
        **job, "paths": [str(packages), *job["paths"]], "tasks": [task.to_job() for task in tasks], "limit": limit
    }  # fmt: skip
    with open_script(python, _SCRIPT, written, env=env, folder=folder, failed=AccuracyError) as script:
        if "problems" in script.said:
            raise AccuracyError(
                *(f"{problem}." for problem in script.said["problems"]), hint=f"All that was said is in {script.log}."
            )
        yield Harness(script)
