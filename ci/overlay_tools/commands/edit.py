"""Open a release as a worktree."""

from __future__ import annotations

import argparse

from overlay_tools import console
from overlay_tools.checkout import only_writer
from overlay_tools.commands import DEFAULT, LOCKED, Command
from overlay_tools.downstream.edit import edit
from overlay_tools.settings import Project, cache_dir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("version", nargs="?", metavar="VERSION", help=f"{LOCKED} (default: {DEFAULT})")
    parser.add_argument(
        "--discard",
        action="store_true",
        help="make the worktree anew, whatever the one that is there holds (default: refuse if that would lose work)",
    )


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Open the worktree, and say where it is."""
    with only_writer(project.root):
        tree = edit(project, cache_dir(), arguments.version or project.default, discard=arguments.discard)
    console.line(f"Change files in {tree.folder}, commit, then `nox -s export`.")
    console.line(f"Run from it: PYTHONPATH={tree.folder} before an interpreter of .nox/engines")


COMMAND = Command(
    about="Makes a git repository in .nox/worktrees with upstream's files of a release, the overlay's files, and one"
    " commit for each hook. Change and commit there with ordinary git; `nox -s export` writes your commits back.",
    examples={
        "": "the default release",
        "0.5.17": "SGLang 0.5.17",
        "0.5.17 --discard": "the same from the start, without what was done there",
    },
    add_arguments=add_arguments,
    run=run,
)
