"""Write releases into upstream.lock, or compare it with the indexes and files that it names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from overlay_tools import console
from overlay_tools.checkout import only_writer
from overlay_tools.commands import Command
from overlay_tools.commands.options import add_index
from overlay_tools.downstream.transaction import undo, write_files
from overlay_tools.errors import LockError, OverlayError, PatchError, ToolError, UsageError
from overlay_tools.patches.series import load_series
from overlay_tools.settings import Project
from overlay_tools.upstream.asked import AskedRelease, asked_releases, from_one_place, say_files_elsewhere
from overlay_tools.upstream.index import difference
from overlay_tools.upstream.lockfile import Release, dump_lock, get_release, load_lock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "releases",
        nargs="*",
        metavar="VERSION",
        help="an SGLang release that the package index has, as 0.5.23, or the paths of its wheels; with --check, one"
        " that is locked (default: all that are locked)",
    )
    add_index(parser, "that has the release")
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing, and fail if an index or a file now differs from the lock (default: no)",
    )


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Pin releases, or say what their indexes and files have otherwise."""
    if arguments.check:
        if arguments.index is not None:
            raise UsageError("--index does not go with --check.", hint="Each release is looked up where it is locked.")
        return _check(project, arguments.releases)
    if not arguments.releases:
        raise UsageError(
            "VERSION is missing: which release is to be locked?",
            hint="`nox -s lock -- VERSION` locks one, `nox -s lock -- --check` compares all with their indexes.",
        )
    asked = asked_releases(arguments.releases, arguments.index)
    with only_writer(project.root):
        undo(project.root)
        _lock(project, asked)


def _lock(project: Project, asked: Sequence[AskedRelease]) -> None:
    old = dict(load_lock(project.lock)) if project.lock.exists() else {}
    new: dict[str, Release] = dict(old)
    for release in [from_one_place(one, old).look_up(project.root) for one in asked]:
        new[release.version] = release
        say_files_elsewhere(release)
        if release.version in old and (lines := difference(old[release.version], release)):
            said = f"sglang {release.version} is not what was locked before: ask why it changed."
            console.line("\n  ".join([said, *lines]), style="yellow")
    write_files(project.root, {project.lock.name: dump_lock(new).encode()})
    console.line(f"{project.lock.name} holds {len(new)} releases.")
    for version in sorted(new.keys() - old.keys()):
        _say_what_is_due(project, version)


def _say_what_is_due(project: Project, version: str) -> None:
    """Say which hooks a release takes that was locked without a port: nothing shows yet that they apply."""
    due: list[str] = []
    lacking: list[str] = []
    try:
        for hook in load_series(project.patches):
            if hook.due.contains(version, prereleases=True):
                has = any(patch.applies.contains(version, prereleases=True) for patch in hook.variants)
                (due if has else lacking).append(hook.name)
    except PatchError:
        return  # `nox -s lint` shows what is wrong with it
    if due:
        console.line(
            f"Not tried at sglang {version} yet: {', '.join(due)}. `nox -s test-{version}` shows whether they apply."
        )
    if lacking:
        console.line(
            f"Due at sglang {version}, but without a variant for it: {', '.join(lacking)}. It cannot be built without."
            f' `nox -s port` finds where they belong: take [release."{version}"] out of upstream.lock again, and port.',
            style="yellow",
        )


def _check(project: Project, versions: Sequence[str]) -> None:
    lock = load_lock(project.lock)
    lines = []
    for release in [get_release(lock, version, project.lock) for version in versions] or lock.values():
        try:
            lines += difference(release, AskedRelease.again(release).look_up(project.root))
        except ToolError:
            raise
        except OverlayError as error:
            lines += [f"{release.version}: {problem}" for problem in error.problems]
    if lines:
        raise LockError(*lines, hint="`nox -s lock -- VERSION` writes what there is now: ask why it changed first.")
    console.line("The index and the lock agree.")


COMMAND = Command(
    about="Asks a package index for a release's wheels, for Python 3.10 to 3.13 on Linux, and writes their names,"
    " sizes and hashes into upstream.lock, with what the release pins of torch, transformers and the kernels. Wheels"
    " that are files are named by their paths: they are read there at every build, and checked. A release that is"
    " locked already is written anew, from where it was. `nox -s port` carries the overlay to a new release, and locks"
    " it too.",
    examples={
        "0.5.23": "pin SGLang 0.5.23",
        "0.5.24 --index https://wheels.example/simple": "pin what another index has as SGLang 0.5.24",
        "wheels/sglang-0.5.24.dev3+gabc-cp312-cp312-linux_x86_64.whl": "pin a wheel that you have built",
        "--check": "see whether the indexes and files still have what the lock says",
        "--check 0.5.23": "the same for one release",
    },
    add_arguments=add_arguments,
    run=run,
)
