"""Run every stage of every release that is not proven yet."""

from __future__ import annotations

import argparse

from overlay_tools import console
from overlay_tools.commands import LOCKED, Command
from overlay_tools.commands.options import add_python
from overlay_tools.proving.runner import plan_matrix, run_matrix
from overlay_tools.settings import Project
from overlay_tools.upstream.lockfile import get_release, load_lock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=f"{LOCKED} (default: all of them)")
    parser.add_argument("--again", action="store_true", help="also run what is proven already (default: no)")
    add_python(parser, "make the engines' environments with")


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Run what is due, and fail if anything of it did."""
    lock = load_lock(project.lock)
    for version in arguments.versions:
        get_release(lock, version, project.lock)
    plan = plan_matrix(project, arguments.versions or list(lock), arguments.python, again=arguments.again)
    if not plan:
        return console.line("Every stage is green for what this checkout builds; --again runs them all the same.")
    peak = run_matrix(project, plan, arguments.python)
    return console.line(
        f"All green. At most {peak.disk / 1e9:.1f} GB of disk and {peak.memory / 1e9:.1f} GB of memory were in use."
    )


COMMAND = Command(
    about="Tests one release after the other: the static stage, then the kernels, the decisions and the engine in an"
    " environment that is made for the release and removed after it, and the plugin in another. Results are written to"
    " ci/results.json as they come, so that a run that is cut short goes on where it was. It needs 23 GB of disk, and"
    " about a quarter of an hour a release.",
    examples={
        "": "all that is not proven for what this checkout builds",
        "0.5.23 0.5.22": "two releases",
        "0.5.23 --again --python 3.12": "one release, whatever is known of it, on CPython 3.12",
    },
    add_arguments=add_arguments,
    run=run,
)
