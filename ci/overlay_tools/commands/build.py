"""Build drop-in wheels, and beside them the CPU kernel wheels."""

from __future__ import annotations

import argparse
import platform

from overlay_tools.commands import DEFAULT, LOCKED, Command
from overlay_tools.commands.options import add_python
from overlay_tools.commands.shared import show_wheel
from overlay_tools.engines.environment import build_release
from overlay_tools.errors import UsageError
from overlay_tools.patches.series import load_series
from overlay_tools.settings import Project
from overlay_tools.upstream.lockfile import PLATFORMS, THIS_PYTHON, get_release, load_lock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=f"{LOCKED} (default: {DEFAULT})")
    parser.add_argument("--all", action="store_true", help="build every locked release (default: no)")
    add_python(parser, "build for")
    parser.add_argument(
        "--platform",
        default=platform.machine(),
        choices=PLATFORMS,
        help="machine to build for (default: this one's, %(default)s)",
    )


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Build the two wheels of each release that is named."""
    if arguments.all and arguments.versions:
        raise UsageError("VERSION and --all exclude each other.", hint="Leave one of them out.")
    lock, hooks = load_lock(project.lock), load_series(project.patches)
    versions = list(lock) if arguments.all else arguments.versions or [project.default]
    for release in [get_release(lock, version, project.lock) for version in versions]:
        for built in build_release(project, release, hooks, arguments.python or THIS_PYTHON, arguments.platform):
            show_wheel(project, built)


COMMAND = Command(
    about="Takes the pinned wheel of an SGLang release, applies the hooks in patches/ exactly, adds the files of"
    " overlay/, and writes the result to dist/ as a drop-in wheel. Beside it goes a wheel of CPU kernels, which stands"
    " in for upstream's kernels on a machine without a GPU.",
    examples={
        "": "the default release, for this Python and this machine",
        "0.5.17 --python 3.12": "SGLang 0.5.17 for CPython 3.12",
        "--all --platform aarch64": "every locked release for ARM machines",
    },
    add_arguments=add_arguments,
    run=run,
)
