"""Show what is known of every release, on the terminal and as a page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from overlay_tools import console
from overlay_tools.commands import Command
from overlay_tools.commands.options import add_python
from overlay_tools.errors import OverlayError
from overlay_tools.patches.series import load_series
from overlay_tools.report.collect import collect_status
from overlay_tools.report.html import check_place, write_page
from overlay_tools.report.terminal import print_status
from overlay_tools.settings import Project, cache_dir
from overlay_tools.upstream.lockfile import load_lock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--html", type=Path, metavar="FILE", help="page to write (default: dist/status.html)")
    parser.add_argument(
        "--check", action="store_true", help="fail if anything that is shown is not green (default: no)"
    )
    add_python(parser, "show the results of")


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Read the status, show it and write the page."""
    path = arguments.html or project.dist / "status.html"
    check_place(path)  # reading takes minutes the first time
    lock, hooks = load_lock(project.lock), load_series(project.patches)
    with console.step(f"Read {len(lock)} releases"):
        status = collect_status(project, lock, hooks, cache_dir(), arguments.python)
    # What is not a terminal has no width to keep to.
    print_status(status, console.Console(highlight=False, width=None if sys.stdout.isatty() else 200))
    write_page(status, path)
    console.line(f"As a page: {path}")
    if arguments.check and status.not_green:
        raise OverlayError(*status.not_green, hint=f"{path} says why.")


COMMAND = Command(
    about="Shows for every locked release whether its hooks apply, what the tests said of the wheel that this checkout"
    " builds, and whether all that the overlay needs of upstream is there; on the terminal, and as a page.",
    examples={"": "write dist/status.html", "--check --html public/index.html": "for a pipeline"},
    add_arguments=add_arguments,
    run=run,
)
