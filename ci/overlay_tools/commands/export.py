"""Write a worktree's commits back."""

from __future__ import annotations

import argparse
import sys

from overlay_tools import console
from overlay_tools.checkout import only_writer
from overlay_tools.commands import LOCKED, Command
from overlay_tools.commands.options import ask
from overlay_tools.downstream.edit import worktrees
from overlay_tools.downstream.export import export
from overlay_tools.downstream.queue import parse_releases
from overlay_tools.errors import WorktreeError
from overlay_tools.settings import Project, cache_dir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "version", nargs="?", metavar="VERSION", help=f"{LOCKED} (default: the one that has a worktree)"
    )

    parser.add_argument(
        "--releases",
        metavar="RANGE",
        help="which other locked releases take what is new or changed, if it fits: a PEP 440 specifier, as '>=0.5.14',"
        " or all (default: for a new hook, those newer than the worktree's; for a change, those that had what it"
        " changes; for a new file of overlay/, all, and otherwise pyproject.toml limits it to RANGE)",
    )
    parser.add_argument(
        "--yes",
        action="store_true",
        help="write without asking whether hooks may become due where they were not, and files go to releases that they"
        " do not fit (default: ask)",
    )


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Write the commits back, and show which files have changed."""
    wanted = parse_releases(arguments.releases)
    version = arguments.version or _only_worktree(project)
    here = sys.stdin.isatty()
    with only_writer(project.root):
        changed = export(
            project,
            cache_dir(),
            version,
            wanted=wanted,
            ask=_ask if here else None,
            agree=(lambda doubts: True) if arguments.yes else _agree if here else _cannot_agree,
        )
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


def _agree(doubts: str) -> bool:
    return ask(f"{doubts}. Write this? [y/N] ").lower() in ("y", "yes")


def _cannot_agree(doubts: str) -> bool:
    raise WorktreeError(
        f"Nothing was written: {doubts}, and there is no terminal to ask on.",
        hint="If the table above is as it should be, export again with --yes; `--releases` limits or widens it.",
    )


def _ask(hook: str, field: str) -> str:
    return ask(f"{field} of the new hook {hook}: ")


COMMAND = Command(
    about="Takes the commits of a worktree that `nox -s edit` opened and writes what they change to patches/ and"
    " overlay/, all of it or nothing. A table shows first which releases take a new or changed hook or a new file, and"
    " why others do not; before a hook becomes due for a release where it was not, or a file goes to one that it"
    " does not fit, you are asked. What a new hook's commit message leaves out is asked for on a terminal.",
    examples={
        "": "the only worktree there is",
        "0.5.17": "that of SGLang 0.5.17",
        "0.5.17 --releases all --yes": "a new hook to every release where it fits, without a question",
    },
    add_arguments=add_arguments,
    run=run,
)
