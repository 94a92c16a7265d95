"""Show what one release has otherwise than another, as far as it concerns the overlay."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from overlay_tools.commands import Command
from overlay_tools.commands.options import add_index, check_places
from overlay_tools.downstream.changes import compare_releases
from overlay_tools.errors import UsageError
from overlay_tools.report.changes import print_changes, to_json, to_markdown
from overlay_tools.report.html import write_text
from overlay_tools.settings import Project, cache_dir
from overlay_tools.upstream.asked import asked_releases
from overlay_tools.upstream.lockfile import Release, load_lock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    for name, which in (("old", "the release to compare with"), ("new", "the release to look at")):
        parser.add_argument(
            name, metavar=name.upper(), help=f"{which}: locked, or one that the package index has, as 0.5.24"
        )
    add_index(parser, "that has what is not locked")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write it as Markdown (default: no)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write it as JSON (default: no)")


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Compare the two and show what was found."""
    check_places({"--markdown": arguments.markdown, "--json": arguments.json})
    words = (arguments.old, arguments.new)
    if arguments.index is not None and all(map(_is_file, words)):
        raise UsageError("--index is for a VERSION; OLD and NEW are files.", hint="Leave it out.")
    releases = [_find(project, word, arguments.index) for word in words]
    if releases[0].version == releases[1].version:
        raise UsageError(f"OLD and NEW are both {releases[0].version}.", hint="Name two releases.")
    changes = compare_releases(project, cache_dir(), *releases)
    print_changes(changes)
    if arguments.markdown is not None:
        index = [] if arguments.index is None else ["--index", arguments.index]
        write_text(to_markdown(changes, shlex.join([*words, *index])), arguments.markdown)
    if arguments.json is not None:
        write_text(to_json(changes), arguments.json)


def _is_file(word: str) -> bool:
    return word.endswith(".whl") or "/" in word


def _find(project: Project, word: str, index: str | None) -> Release:
    """Return a release as it is locked, or as the index has it."""
    (asked,) = asked_releases([word], None if _is_file(word) else index)
    lock = load_lock(project.lock)
    if not asked.paths and asked.version in lock:
        return lock[asked.version]
    return asked.look_up(project.root)


COMMAND = Command(
    about="Says what becomes of each hunk of the hooks from one release to another, what of the contract does not hold"
    " there, which new places name a base, and what changed for the overlay: names that it uses and that moved or take"
    " other arguments, upstream's code that it has its own version of, new architectures like its own. It changes"
    " nothing.",
    examples={
        "0.5.22 0.5.23": "between two locked releases",
        "0.5.23 0.5.24": "what a release that the index has would bring",
        "0.5.23 0.5.24 --markdown changes.md --json changes.json": "for a pull request, and for a program",
    },
    add_arguments=add_arguments,
    run=run,
)
