"""Bring in patches or a fork."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from overlay_tools import console
from overlay_tools.checkout import only_writer
from overlay_tools.commands import Command
from overlay_tools.downstream.importer import OUTCOMES, ImportPlan, plan_import, write_import
from overlay_tools.errors import OverlayError
from overlay_tools.settings import Project, cache_dir

_STYLES = {"conflict": "red", "left out": "yellow"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="a patch, a folder of patches, a mailbox of `git format-patch`, or a fork's checkout or wheel",
    )
    parser.add_argument(
        "--base",
        metavar="VERSION",
        help="the locked release that SOURCE was made on (default: for a fork, the one with the fewest differences;"
        " for patches, the one that pyproject.toml sets as `default`)",
    )
    parser.add_argument(
        "--releases",
        metavar="RANGE",
        help='releases that are to take the hooks too where they fit exactly, as ">=0.5.20" (default: the base alone)',
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="files of a fork to leave alone, as sglang/multimodal_gen; may be given several times (default: none)",
    )
    parser.add_argument("--yes", action="store_true", help="write without asking (default: ask on a terminal)")


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Show what would be brought in, ask, and write it."""
    with only_writer(project.root):
        plan = plan_import(
            project, cache_dir(), arguments.source, arguments.base, arguments.releases, tuple(arguments.exclude)
        )
        _show(plan)
        if not any(row.outcome in ("brought in", "in part") for row in plan.rows):
            raise OverlayError(f"Nothing of {arguments.source} can be brought in.", hint="The table above says why.")
        if not arguments.yes:
            _agree()
        changed = write_import(project, plan)
    console.line(f"{len(changed)} files written.")
    if plan.unfilled:
        console.line(f"{plan.unfilled} hooks have fields to be filled in: `nox -s lint` lists them.", "yellow")


def _show(plan: ImportPlan) -> None:
    rows = [
        (row.outcome, row.title, row.hook, row.lines, str(len(row.added) or ""), ", ".join(row.releases))
        for row in plan.rows
    ]
    console.line(f"base: sglang {plan.base}{plan.base_note}")
    console.grid(("outcome", "patch", "hook", "lines", "new files", "releases"), rows)
    for row in plan.rows:
        new = [f"new: overlay/{name}" for name in row.added if name != row.title]
        for note in (*row.notes, *new):
            console.line(f"{row.title}: {note.removeprefix(f'{row.title}: ')}", _STYLES.get(row.outcome, ""))
    for warning in plan.warnings:
        console.line(f"warning: {warning}", "yellow")
    console.line(", ".join(f"{sum(row.outcome == outcome for row in plan.rows)} {outcome}" for outcome in OUTCOMES))


def _agree() -> None:
    """Ask whether to write.

    Raises OverlayError if no one is there to ask, or the answer is no.
    """
    if not sys.stdin.isatty():
        raise OverlayError("Nothing was written: no one is here to ask.", hint="`--yes` writes what the table shows.")
    if input("Write this to patches/ and overlay/? [y/N] ").strip().lower() not in ("y", "yes"):
        raise OverlayError("Nothing was written.", hint="Run this again to be asked again.")


COMMAND = Command(
    about="Brings in changes that were made elsewhere: changed files become hooks, new ones go to overlay/. Each patch"
    " is applied exactly to a release; what does not apply, lies outside the wheel or cannot be expressed is named and"
    " left out, and the rest is brought in. Nothing is written before the whole table was shown and agreed to.",
    examples={
        "../ours/patches": "patches, applied in order to the default release",
        "fix.patch --base 0.5.21 --releases '>=0.5.21'": "a patch, for newer releases too where it fits",
        "ours-0.7.2-py3-none-any.whl --exclude sglang/multimodal_gen --yes": "a fork's wheel, without being asked",
    },
    add_arguments=add_arguments,
    run=run,
)
