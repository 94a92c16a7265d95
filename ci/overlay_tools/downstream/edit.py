"""A locked release opened as a worktree, to change hooks and overlay files with ordinary git."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from overlay_tools import console
from overlay_tools.downstream.exported_state import ExportedState
from overlay_tools.downstream.transaction import undo
from overlay_tools.downstream.worktree import Worktree
from overlay_tools.errors import WorktreeError
from overlay_tools.patches.apply import apply_series
from overlay_tools.patches.model import Hook, variants_of
from overlay_tools.patches.series import load_series
from overlay_tools.settings import Project
from overlay_tools.upstream.download import fetch
from overlay_tools.upstream.lockfile import get_release, load_lock
from overlay_tools.upstream.source_tree import source_wheel
from overlay_tools.wheels.overlay_files import check_ranges, read_package

_WORKTREES = Path(".nox", "worktrees")  # .nox/edit is the session's environment, which nox may remove


def edit(project: Project, cache: Path, version: str, *, discard: bool) -> Worktree:
    """Open a locked release as a worktree: upstream's files, the overlay's, and one commit a hook.

    A worktree that is there and holds nothing of a person's is made anew; with `discard`, any is.
    Raises WorktreeError if it holds work that is not exported; LockError, PatchError as the series or the lock demand.
    """
    undo(project.root)
    lock, hooks = load_lock(project.lock), load_series(project.patches)
    release = get_release(lock, version, project.lock)
    check_ranges(project, lock)
    if not discard:
        refuse_to_lose(project, version, hooks, f"`nox -s edit -- {version} --discard`")
    tree = worktree_of(project, version)
    patches = variants_of(hooks, version)
    with console.step(f"Open sglang {version} in {tree.folder.relative_to(project.root)}"):
        base = fetch(release, source_wheel(release), cache)
        new = tree.folder.with_name(f".{version}.new")
        shutil.rmtree(new, ignore_errors=True)
        part = Worktree.create(new, base, read_package(project, "sglang", version))
        for patch in patches:
            part.commit_hook(patch, apply_series([patch], part.read_working, f"sglang {version}"))
        ExportedState.note(part, patches)
        shutil.rmtree(tree.folder, ignore_errors=True)
        part.folder.rename(tree.folder)
    return tree


def refuse_to_lose(project: Project, version: str, hooks: Sequence[Hook], discarding: str) -> None:
    """Raise WorktreeError if a release's worktree holds work that only it has.

    Parameters: `discarding`, the command that would make it anew all the same.
    """
    tree = worktree_of(project, version)
    if tree.folder.exists() and (work := _only_there(tree, hooks)):
        raise WorktreeError(
            *work, hint=f"`nox -s export -- {version}` writes commits back; {discarding} does not keep them."
        )


def worktree_of(project: Project, version: str) -> Worktree:
    """Return the worktree of a release, whether or not it has been made."""
    return Worktree(project.root / _WORKTREES / version)


def worktrees(project: Project) -> list[str]:
    """Return the releases that have a worktree."""
    folder = project.root / _WORKTREES
    return [path.name for path in sorted(folder.iterdir()) if path.name[0] != "."] if folder.exists() else []


def _only_there(tree: Worktree, hooks: Sequence[Hook]) -> list[str]:
    """Return what a worktree holds that only it has, a sentence each."""
    state = ExportedState.read(tree)
    lines = [f"{tree.folder / name} is not committed." for name in tree.uncommitted()]
    if tree.head() != state.exported:
        lines.append(f"{tree.folder} has commits that are not exported.")
    gone = sorted(state.patches.keys() - {hook.name for hook in hooks})
    lines += [f"{tree.folder}: hook {name} is in its commits, and no longer in patches/." for name in gone]
    return lines + [f"{tree.folder}: {what} is not exported." for what in tree.kept_aside(state.exported)]
