"""Port the series through all releases, and made-up insertions beside other tools."""

from __future__ import annotations

import argparse

from overlay_tools.bench_port import bench_port, replay
from overlay_tools.commands import LOCKED, Command
from overlay_tools.errors import PortError
from overlay_tools.settings import Project, cache_dir
from overlay_tools.upstream.lockfile import get_release, load_lock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("old", nargs="?", default="0.5.16", metavar="OLD", help=f"{LOCKED} (default: 0.5.16)")
    parser.add_argument("new", nargs="?", metavar="NEW", help="the release to carry to (default: the newest)")
    parser.add_argument("--count", type=int, default=240, help="how many insertions (default: 240)")


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Port the series, then the insertions, and fail if one of those came out at a wrong place."""
    lock = load_lock(project.lock)
    for version in (arguments.old, arguments.new or list(lock)[-1]):
        get_release(lock, version, project.lock)
    replay(project, lock, cache_dir())
    counts = bench_port(lock, cache_dir(), arguments.old, arguments.new or list(lock)[-1], arguments.count)
    if wrong := counts["port, applied"]["wrong"] + counts["port, proposed"]["wrong"]:
        raise PortError(f"{wrong} insertions came out at a wrong place.")


COMMAND = Command(
    about="Replays the series through all releases, and carries made-up insertions from one release to another beside"
    " other tools.",
    examples={"0.5.16 0.5.23 --count 60": "60 insertions from one release to another"},
    add_arguments=add_arguments,
    run=run,
)
