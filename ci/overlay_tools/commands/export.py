"""Write a worktree's commits back."""

from __future__ import annotations

import argparse
import sys

from overlay_tools import console
from overlay_tools.checkout import only_writer
from overlay_tools.commands import LOCKED, Command
from overlay_tools.downstream.edit import worktrees
from overlay_tools.downstream.export import export
from overlay_tools.errors import WorktreeError
from overlay_tools.settings import Project, cache_dir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "version", nargs="?", metavar="VERSION", help=f"{LOCKED} (default: the one that has a worktree)"
    )


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Write the commits back, and show which files have changed."""
    version = arguments.version or _only_worktree(project)
    with only_writer(project.root):
        changed = export(project, cache_dir(), version, _ask if sys.stdin.isatty() else None)
    for name in changed:
        console.line(name)
    console.line(f"{len(changed)} files written or removed." if changed else "Nothing has changed.")


def _only_worktree(project: Project) -> str:
    made = worktrees(project)
    if not made:
        raise WorktreeError("There is no worktree to export.", hint="`nox -s edit` opens one.")
    if len(made) > 1:
        raise WorktreeError(
            f"There are {len(made)} worktrees: {', '.join(made)}.",
            hint=f"Say which one is to be exported: `nox -s export -- {made[0]}`.",
        )
    return made[0]


def _ask(hook: str, field: str) -> str:
    return input(f"{field} of the new hook {hook}: ").strip()


COMMAND = Command(
    about="Takes the commits of a worktree that `nox -s edit` opened and writes what they change to patches/ and"
    " overlay/, all of it or nothing. A changed hook is tried on every locked release; those that it does not fit keep"
    " the variant that they have. What a new hook's commit message leaves out is asked for on a terminal.",
    examples={"": "the only worktree there is", "0.5.17": "that of SGLang 0.5.17"},
    add_arguments=add_arguments,
    run=run,
)
