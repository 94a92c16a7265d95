"""Carry the overlay to what upstream has released since, and prove it; a branch or a report for each release."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from overlay_tools import console
from overlay_tools.commands import Command
from overlay_tools.commands.options import add_index, add_python, check_places
from overlay_tools.proving.stages import STAGES
from overlay_tools.proving.watch import Seen, Watcher
from overlay_tools.report.html import write_text
from overlay_tools.report.watch import describe_seen, print_seen, to_row
from overlay_tools.settings import Project, cache_dir
from overlay_tools.upstream.index_url import checked_index
from overlay_tools.upstream.versions import newer_versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_index(parser, "to ask")
    parser.add_argument("--post", action="store_true", help="look at post-releases too, as 0.5.24.post1 (default: no)")
    parser.add_argument(
        "--candidates", action="store_true", help="look at pre-releases too, as 0.5.24rc1 (default: no)"
    )
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=STAGES,
        default=[*STAGES],
        metavar="STAGE",
        help=f"what a branch has to pass, of {', '.join(STAGES)} (default: all of them)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was seen as JSON (default: no)")
    add_python(parser, "make the engine's environment with")


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Ask for new releases and look at each."""
    check_places({"--json": arguments.json})
    index = "" if arguments.index is None else checked_index(arguments.index)
    stages = [stage for stage in STAGES if stage in arguments.stages]
    watcher = Watcher(project, cache_dir(), stages, arguments.python)
    newest = watcher.newest()
    with console.step(f"Ask for releases after sglang {newest}"):
        versions = newer_versions(newest, index, candidates=arguments.candidates, posts=arguments.post)
    if not versions:
        console.line(f"No release is newer than sglang {newest}.")
    rows = []
    try:
        for seen in watcher.look(versions, index, partial(_write, watcher)):
            print_seen(seen, str(_page(watcher, seen)) if seen.described else "")
            rows.append(to_row(seen))
    finally:  # whatever ends the run: of what it has finished, the next one says no more than that it is there
        if arguments.json is not None:
            write_text(json.dumps(rows, indent=1) + "\n", arguments.json)


def _page(watcher: Watcher, seen: Seen) -> Path:
    return watcher.reports / f"{seen.release}.md"


def _write(watcher: Watcher, seen: Seen) -> None:
    """Write the description of a branch or a report, and note that it was."""
    write_text(describe_seen(seen), _page(watcher, seen))
    write_text(json.dumps(watcher.note(seen.outcome)), _page(watcher, seen).with_suffix(".json"))


COMMAND = Command(
    about="Asks the package index for releases after the newest locked one, carries the overlay to each as `port` does,"
    " and runs its stages. Where all of it holds, the result is a branch of this repository, watch/VERSION; where a"
    " person has to settle something, it is a report. Both are described in .nox/watched/VERSION.md. Files of the"
    " checkout and the branch that is checked out stay as they are. A release that has a branch or, at the same commit,"
    " a report is not looked at again.",
    examples={
        "": "final releases, all stages",
        "--post --candidates --stages static": "post- and pre-releases too, from their sources alone",
        "--json watched.json": "for a program",
    },
    add_arguments=add_arguments,
    run=run,
)
