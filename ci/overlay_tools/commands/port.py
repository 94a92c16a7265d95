"""Carry the overlay to a release that is not locked yet, or hooks to one that is."""

from __future__ import annotations

import argparse
import sys

from overlay_tools import console
from overlay_tools.checkout import only_writer
from overlay_tools.commands import Command
from overlay_tools.commands.options import add_index
from overlay_tools.downstream.port import Port
from overlay_tools.downstream.selection import Wanted
from overlay_tools.errors import UsageError
from overlay_tools.settings import Project, cache_dir
from overlay_tools.upstream.asked import asked_releases, from_one_place
from overlay_tools.upstream.lockfile import load_lock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "release",
        nargs="*",
        metavar="VERSION",
        help="an SGLang release that the package index has, as 0.5.24, or the paths of its wheels; with --take or"
        " --drop, one that is locked too",
    )
    add_index(parser, "that has the release")
    parser.add_argument(
        "--continue", action="store_true", dest="go_on", help="take over what you settled in the worktree, and go on"
    )
    parser.add_argument("--abort", action="store_true", help="give up, and leave everything as it was")
    parser.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="HOOK",
        help="this hook is not due at the release any more: a name, or a pattern as 'kt-*'; may be given several times"
        " (default: none)",
    )
    parser.add_argument(
        "--take",
        action="append",
        default=[],
        metavar="HOOK",
        help="make a hook due at this release that is not: a name, or a pattern as 'kt-*'; may be given several times"
        " (default: ask, where it fits and a release beside this one takes it)",
    )
    parser.add_argument(
        "--leave",
        action="append",
        default=[],
        metavar="HOOK",
        help="do not make such a hook due, and do not ask: a name, or a pattern; may be given several times"
        " (default: ask)",
    )


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Begin a port, go on with it, or give it up."""
    given = [bool(arguments.release) or arguments.index is not None, arguments.go_on, arguments.abort]
    asked = asked_releases(arguments.release, arguments.index)
    if sum(given) != 1 or (given[0] and len(asked) != 1):
        problem = "VERSION is missing."
        if sum(given) > 1:
            problem = "VERSION, --continue and --abort exclude each other."
        elif asked:
            problem = f"A port is to one release, not to {' and '.join(release.version for release in asked)}."
        raise UsageError(
            problem,
            hint="`nox -s port -- VERSION` begins a port, `-- --continue` goes on with it, `-- --abort` gives it up.",
        )
    wanted = Wanted(take=arguments.take, leave=arguments.leave, drop=arguments.drop)
    if arguments.abort and (wanted.take or wanted.leave or wanted.drop):
        raise UsageError(
            "--take, --leave and --drop do not go with --abort.", hint="`nox -s port -- --abort` gives a port up."
        )
    if both := [name for name in wanted.take if name in wanted.leave]:
        raise UsageError(f"Hook {both[0]} cannot be taken and left.", hint="Give --take or --leave.")
    ask = _ask if sys.stdin.isatty() else None
    port = Port(project, cache_dir())
    with only_writer(project.root):
        if arguments.abort:
            port.abort()
            console.line("Given up; patches/ and upstream.lock are as they were.")
        elif arguments.go_on:
            port.resume(wanted, ask=ask)
        else:
            release = from_one_place(asked[0], load_lock(project.lock))
            port.start(release.version, lambda _: release.look_up(project.root), wanted, ask=ask)


def _ask(hook: str, found: str) -> bool | None:
    """Ask on the terminal whether a release takes a hook that is not due there; None if it is closed."""
    try:
        answer = ""
        while answer not in ("y", "yes", "n", "no"):
            answer = input(f"Hook {hook} is not due, but {found}. Is it needed? [y/n] ").strip().lower()
    except EOFError:
        return None
    return answer[0] == "y"


COMMAND = Command(
    about="Finds where each hook belongs in a new release, checks all that the overlay needs of it, builds and verifies"
    " its wheel, and only then writes patches/ and upstream.lock. Where a hook does not fit, a worktree in .nox/porting"
    " holds a proposal between conflict markers: settle it there, and continue. A hook that is not due, but fits and is"
    " taken by a release beside the new one, is asked about on a terminal; --take and --leave answer without one.",
    examples={
        "0.5.24": "begin",
        "0.5.24 --index https://wheels.example/simple": "begin with what another index has",
        "wheels/sglang-0.5.24.dev3+gabc-cp312-cp312-linux_x86_64.whl": "begin with a wheel that you have built",
        "0.5.24 --take text-config": "begin, with a hook that is not due there",
        "0.5.23 --take 'kt-*'": "carry hooks to a release that is locked already",
        "--continue": "go on with what you settled",
        "--continue --drop resolve-model": "go on without a hook that the release no longer needs",
        "--abort": "give up",
    },
    add_arguments=add_arguments,
    run=run,
)
