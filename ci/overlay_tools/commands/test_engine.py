"""Run the engine tests of one release in its environment."""

from __future__ import annotations

import argparse
import signal

from overlay_tools.commands import LOCKED, Command
from overlay_tools.commands.options import add_passed_on, add_python
from overlay_tools.commands.shared import open_engine, require_cuda
from overlay_tools.engines import engine_config
from overlay_tools.errors import ToolError, UsageError
from overlay_tools.proving.stages import ENGINE_TESTS, GPU_TESTS, IN_PROCESSES, PLUGIN_TESTS
from overlay_tools.settings import Project
from overlay_tools.subprocesses import run_attached


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("version", metavar="VERSION", help=LOCKED)
    add_python(parser, "test with")
    parser.add_argument(
        "--plugin",
        action="store_true",
        help="test upstream's own wheel with the plugin (default: the drop-in wheel)",
    )
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="run the tests that need a CUDA GPU, with upstream's kernels (default: those for a CPU)",
    )
    add_passed_on(
        parser,
        "of pytest, which then runs in one process; those that begin with tests/ take the place of the usual test"
        " files",
    )


def run(project: Project, arguments: argparse.Namespace) -> int:
    """Run pytest in the release's environment, and return its exit status."""
    files = [word.partition("::")[0] for word in arguments.passed_on if word.startswith("tests/")]
    if absent := [name for name in files if not (project.root / name).exists()]:
        raise UsageError(*(f"There is no {name}." for name in absent), hint="Name tests that are there.")
    if arguments.gpu:
        require_cuda()
    where = GPU_TESTS if arguments.gpu else PLUGIN_TESTS if arguments.plugin else ENGINE_TESTS
    if files:
        where = ()
    # An engine environment holds what the release pins, whose warnings are not ours to mend.
    words = ["-m", "pytest", "-W", "default", *where, *arguments.passed_on]
    if not arguments.gpu and not arguments.passed_on:  # a person who chooses tests wants to see what each says
        words += IN_PROCESSES
    with open_engine(
        project, arguments.version, arguments.python, gpu=arguments.gpu, plugin=arguments.plugin
    ) as python:
        status = run_attached([python, *words], env={} if arguments.gpu else engine_config.ENV)
    if status % 256 == -signal.SIGKILL % 256:  # as the supervisor ends where a signal has ended its program
        raise ToolError(
            "pytest was killed before it could say what failed.",
            hint="An engine that cannot start kills the process that starts it. With `-- -x`, pytest ends with what"
            " failed first; if memory ran out, the system's log says so.",
        )
    return status


COMMAND = Command(
    about="Builds a release's wheels, installs them with all that the release pins into an environment in .nox/engines,"
    " and runs the tests of the engine there. The sessions `test-VERSION`, `test-gpu-VERSION` and"
    " `test-plugin-VERSION` run this, and hand their arguments to pytest: `nox -s test-0.5.17 -- -k parity`.",
    examples={
        "0.5.17": "all tests of the engine",
        "0.5.17 -- tests/engine/serving/test_http.py -x": "one file of them",
        "--plugin 0.5.17": "those of the plugin",
        "--gpu 0.5.17 -- -k graphs": "some of those for a CUDA GPU",
    },
    add_arguments=add_arguments,
    run=run,
)
