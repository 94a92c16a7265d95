"""Compare wheels or environments with their manifests."""

from __future__ import annotations

import argparse
from pathlib import Path

from overlay_tools import console
from overlay_tools.commands import Command
from overlay_tools.errors import UsageError, VerifyError
from overlay_tools.settings import Project
from overlay_tools.wheels.verify import verify_environment, verify_wheel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("wheels", nargs="*", type=Path, metavar="WHEEL", help="a wheel that `nox -s build` wrote")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="PYTHON",
        help="the interpreter of an environment that such a wheel is installed in; may be given several times",
    )


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Compare each, show every difference, and fail if there is any."""
    if not arguments.wheels and not arguments.env:
        raise UsageError(
            "There is nothing to verify: name a WHEEL or an environment.",
            hint="`nox -s verify -- WHEEL` or `nox -s verify -- --env PYTHON`.",
        )
    results = [verify_wheel(path) for path in arguments.wheels]
    for python in arguments.env:
        results += verify_environment(python)
    for result in results:
        console.line(f"{result.name}: {result.files} files, {len(result.differences) or 'no'} differences")
        for difference in result.differences:
            console.line(f"  {difference}", style="red")
    different = [result.name for result in results if result.differences]
    if different:
        raise VerifyError(*(f"{name} is not as it was built." for name in different), hint="Install or build it anew.")


COMMAND = Command(
    about="Compares every file of a wheel, or of what an environment has of it, with the manifest inside the wheel and"
    " with RECORD: what is changed, missing or foreign is listed, and the exit status is 1.",
    examples={
        "dist/sglang-0.5.23+*.whl": "a wheel",
        "--env .venv/bin/python": "what is installed in an environment",
    },
    add_arguments=add_arguments,
    run=run,
)
