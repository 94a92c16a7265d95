"""Check patches/, and which releases take files of overlay/, against the lock."""

from __future__ import annotations

import argparse

from overlay_tools import console
from overlay_tools.commands import Command
from overlay_tools.errors import PatchError
from overlay_tools.patches.lint import find_warnings, lint
from overlay_tools.patches.series import load_series
from overlay_tools.settings import Project
from overlay_tools.upstream.lockfile import load_lock
from overlay_tools.wheels.overlay_files import check_ranges


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes: nothing."""


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Show every fault of the series, and fail if there is any."""
    lock, hooks = load_lock(project.lock), load_series(project.patches)
    check_ranges(project, lock)
    for warning in find_warnings(hooks):
        console.line(f"warning: {warning}", "yellow")
    faults = lint(hooks, list(lock))
    if faults:
        raise PatchError(*faults, hint="patches/README.md says what a patch must look like.")
    console.line(f"No faults: {sum(len(hook.variants) for hook in hooks)} patches, {len(hooks)} hooks.")


COMMAND = Command(
    about="Checks that each hook in patches/ has exactly one variant for every locked release that it is due for, that"
    " headers and file names are right, that each diff is as small as it can be, and that each range of releases in"
    " [tool.sglang-overlay.files] holds for a file and a release. `nox -s lint` runs this too.",
    examples={"": "check all of patches/"},
    add_arguments=add_arguments,
    run=run,
)
