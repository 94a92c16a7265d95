"""Bring in patches or a fork."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from overlay_tools import console
from overlay_tools.checkout import only_writer
from overlay_tools.commands import Command
from overlay_tools.commands.options import ask
from overlay_tools.downstream.edit import worktree_of
from overlay_tools.downstream.importer import OUTCOMES, ImportPlan, plan_import, refuse_worktree, write_import
from overlay_tools.errors import OverlayError, WorktreeError
from overlay_tools.settings import Project, cache_dir

_STYLES = {"conflict": "red", "left out": "yellow"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="a patch, a folder of patches, a mailbox of `git format-patch`, or a fork: its checkout, or its wheel,"
        " which may be unpacked",
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
        help="which other locked releases take the hooks too, if they fit: a PEP 440 specifier, as '>=0.5.20', or all"
        " (default: the base alone)",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="files of a fork to leave alone, as sglang/multimodal_gen; may be given several times (default: none)",
    )
    parser.add_argument(
        "--discard",
        action="store_true",
        help="where patches conflict, make the worktree of the base anew, whatever the one that is there holds"
        " (default: refuse if that would lose work)",
    )
    parser.add_argument("--yes", action="store_true", help="write without asking (default: ask on a terminal)")


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Show what would be brought in, ask, and write it."""
    cache = cache_dir()
    with only_writer(project.root):
        plan = plan_import(
            project, cache, arguments.source, arguments.base, arguments.releases, tuple(arguments.exclude)
        )
        _show(plan)
        if not plan.writes:
            if any(row.outcome == "there already" for row in plan.rows):
                left_out = sum(row.outcome == "left out" for row in plan.rows)
                rest = f" Left out: {left_out} of {len(plan.rows)}." if left_out else ""
                console.line(f"Nothing was written: all that can be brought in is there already.{rest}")
                return
            raise OverlayError(f"Nothing of {arguments.source} can be brought in.", hint="The table above says why.")
        if plan.marked and not arguments.discard:
            refuse_worktree(project, plan.base)
        if not arguments.yes:
            _agree(plan)
        changed = write_import(project, cache, plan, discard=arguments.discard)
    console.line(f"{len(changed)} files written.")
    if plan.unfilled:
        console.line(f"{plan.unfilled} hooks have fields to be filled in: `nox -s lint` lists them.", "yellow")
    if plan.marked:
        _say_what_is_left(project, plan, arguments.releases)


def _say_what_is_left(project: Project, plan: ImportPlan, releases: str | None) -> None:
    """Raise WorktreeError with the patches that a person is to settle."""
    folder = worktree_of(project, plan.base).folder
    raise WorktreeError(
        *(
            f"{patch.attempt.patch.title}: to be settled: {', '.join(patch.marked) or patch.attempt.faults[0]}"
            for patch in plan.marked
        ),
        hint=f"Each is a commit, on top of what was brought in: `git -C {folder} rebase -i overlay`, and amend them"
        f" there; then `nox -s export -- {plan.base} --releases '{releases or f'=={plan.base}'}'`.",
    )


def _show(plan: ImportPlan) -> None:
    rows = [
        (row.outcome, row.title, row.hook, row.lines, str(len(row.added) or ""), ", ".join(row.releases))
        for row in plan.rows
    ]
    console.line(f"base: sglang {plan.base}{plan.base_note}")
    console.grid(("outcome", "patch", "hook", "lines", "new files", "releases"), rows)
    if plan.decisions:
        console.grid(("hook", "releases", "outcome"), plan.decisions)
    for row in plan.rows:
        new = [f"new: overlay/{name}" for name in row.added if name != row.title]
        for note in (*row.notes, *new):
            console.line(f"{row.title}: {note.removeprefix(f'{row.title}: ')}", _STYLES.get(row.outcome, ""))
    for line in [*(f"sglang {plan.base} {change}" for change in plan.settings.requirements), *plan.settings.kept]:
        console.line(line)
    for warning in plan.warnings:
        console.line(f"warning: {warning}", "yellow")
    console.line(", ".join(f"{sum(row.outcome == outcome for row in plan.rows)} {outcome}" for outcome in OUTCOMES))
    if plan.marked:
        console.line(f"What is in conflict goes to the worktree of sglang {plan.base}, between markers.", "yellow")


def _agree(plan: ImportPlan) -> None:
    """Ask whether to write.

    Raises OverlayError if no one is there to ask, or the answer is no.
    """
    if not sys.stdin.isatty():
        raise OverlayError("Nothing was written: no one is here to ask.", hint="`--yes` writes what the table shows.")
    places = "patches/, overlay/, pyproject.toml" + (" and the worktree" if plan.marked else "")
    if ask(f"Write this to {places}? [y/N] ").lower() not in ("y", "yes"):
        raise OverlayError("Nothing was written.", hint="Run this again to be asked again.")


COMMAND = Command(
    about="Brings in changes that were made elsewhere: changed files become hooks, new ones go to overlay/. Each patch"
    " is applied exactly to a release. One that does not apply becomes a commit with conflict markers in a worktree of"
    " that release, for you to settle and export. What lies outside the wheel or cannot be expressed is named and left"
    " out. Nothing is written before the whole table was shown and agreed to.",
    examples={
        "../ours/patches": "patches, applied in order to the default release",
        "fix.patch --base 0.5.21 --releases '>=0.5.21'": "a patch, for newer releases too where it fits",
        "ours-0.7.2-py3-none-any.whl --exclude sglang/multimodal_gen --yes": "a fork's wheel, without being asked",
    },
    add_arguments=add_arguments,
    run=run,
)
