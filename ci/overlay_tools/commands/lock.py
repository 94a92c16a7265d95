"""Write releases into upstream.lock, or compare it with the index."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from overlay_tools import console
from overlay_tools.checkout import only_writer
from overlay_tools.commands import Command
from overlay_tools.downstream.transaction import undo, write_files
from overlay_tools.errors import LockError, UsageError
from overlay_tools.settings import Project
from overlay_tools.upstream.index import difference, query_release
from overlay_tools.upstream.lockfile import Release, dump_lock, get_release, load_lock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "versions",
        nargs="*",
        metavar="VERSION",
        help="an SGLang release that the package index has, as 0.5.23; with --check, one that is locked"
        " (default: all that are locked)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing, and fail if the index now differs from the lock (default: no)",
    )


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Pin releases, or say what the index has otherwise."""
    if arguments.check:
        return _check(project, arguments.versions)
    if not arguments.versions:
        raise UsageError(
            "VERSION is missing: which release is to be locked?",
            hint="`nox -s lock -- VERSION` locks one, `nox -s lock -- --check` compares all with the index.",
        )
    with only_writer(project.root):
        undo(project.root)
        _lock(project, arguments.versions)


def _lock(project: Project, versions: Sequence[str]) -> None:
    new: dict[str, Release] = dict(load_lock(project.lock)) if project.lock.exists() else {}
    for version in versions:
        release = _ask(version)
        new[release.version] = release
    write_files(project.root, {project.lock.name: dump_lock(new).encode()})
    console.line(f"{project.lock.name} holds {len(new)} releases.")


def _check(project: Project, versions: Sequence[str]) -> None:
    lock = load_lock(project.lock)
    releases = [get_release(lock, version, project.lock) for version in versions] or lock.values()
    lines = [line for release in releases for line in difference(release, _ask(release.version))]
    if lines:
        raise LockError(
            *lines, hint="`nox -s lock -- VERSION` writes what the index has now: ask why it changed first."
        )
    console.line("The index and the lock agree.")


def _ask(version: str) -> Release:
    with console.step(f"Ask the index for sglang {version}"):
        return query_release(version)


COMMAND = Command(
    about="Asks the package index for a release's wheels, for Python 3.10 to 3.13 on Linux, and writes their names,"
    " sizes and hashes into upstream.lock, with what the release pins of torch, transformers and the kernels. A release"
    " that is locked already is written anew. `nox -s port` carries the overlay to a new release, and locks it too.",
    examples={
        "0.5.23": "pin SGLang 0.5.23",
        "--check": "see whether the index still has what the lock says",
        "--check 0.5.23": "the same for one release",
    },
    add_arguments=add_arguments,
    run=run,
)
