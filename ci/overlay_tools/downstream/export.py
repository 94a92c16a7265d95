"""The commits of a worktree written back to patches/ and overlay/, all of it or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from overlay_tools import console
from overlay_tools.downstream.committed_hooks import ASKED, Ask, CommittedHook, read_committed_hooks
from overlay_tools.downstream.diff import make_diff
from overlay_tools.downstream.edit import worktree_of
from overlay_tools.downstream.exported_state import ExportedState, digests
from overlay_tools.downstream.queue import PatchQueue
from overlay_tools.downstream.staging import stage
from overlay_tools.downstream.transaction import undo, write_patches
from overlay_tools.downstream.worktree import OVERLAY, UPSTREAM, Worktree
from overlay_tools.errors import REPORT, PatchError, WorktreeError
from overlay_tools.patches.apply import apply_series
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.lint import load_checked_series
from overlay_tools.patches.model import Hook, Patch
from overlay_tools.patches.relocate import relocate
from overlay_tools.settings import Project
from overlay_tools.upstream.lockfile import get_release, load_lock
from overlay_tools.upstream.source_tree import open_source_tree
from overlay_tools.wheels.overlay_files import compile_all


def export(project: Project, cache: Path, version: str, ask: Ask | None) -> list[str]:
    """Write back what a worktree's commits change of hooks and of overlay files.

    Parameters: `ask` asks a person for a field of a new hook's header, None if no one is there to ask.
    Returns the paths that were written or removed; a worktree without a change changes none.
    Raises WorktreeError for commits that cannot be taken over, PatchError for hooks that do not hold.
    """
    undo(project.root)
    lock = load_lock(project.lock)
    get_release(lock, version, project.lock)
    hooks = load_checked_series(project.patches, list(lock))
    tree = _open_worktree(project, version, hooks)
    committed = read_committed_hooks(tree, hooks, version, project.replaces, ask)
    overlay = _overlay_changes(tree, project)
    queue, series = PatchQueue(hooks, list(lock)), {hook.name: hook for hook in hooks}
    with ExitStack() as stack, console.step(f"Try {len(committed)} hooks on {len(lock)} releases"):
        releases = {v: HookedTree(stack.enter_context(open_source_tree(lock[v], cache))) for v in lock}
        for name in {**series, **committed}:  # a new hook goes to the end of the series
            taken = {v: series[name].variant(v) if name in series else None for v in releases}
            if name in committed:
                taken |= _renew(committed[name], version, taken, queue, releases, project.patches)
            for v, patch in taken.items():
                if patch is not None:
                    _apply(patch, releases[v])
        _check_effect(tree, releases[version], committed)
    files = queue.files((project.patches / "series").read_text(encoding="utf-8"))
    with TemporaryDirectory() as folder:
        staged = stage(Path(folder), files, project.patches, list(lock))
    changed = write_patches(project.patches, files, {f"overlay/{name}": data for name, data in overlay.items()})
    ExportedState.note(tree, [patch for hook in staged if (patch := hook.variant(version))])
    return changed


def _open_worktree(project: Project, version: str, hooks: Sequence[Hook]) -> Worktree:
    """Return the worktree of a release.

    Raises WorktreeError if there is none, something in it is not committed, or the hooks are no longer those that it
    was made with.
    """
    tree = worktree_of(project, version)
    if not tree.folder.exists():
        raise WorktreeError(f"There is no worktree {tree.folder}.", hint=f"`nox -s edit -- {version}` makes it.")
    if dirty := tree.uncommitted():
        raise WorktreeError(*(f"{tree.folder / name} is not committed." for name in dirty), hint="Commit or remove it.")
    if ExportedState.read(tree).patches != digests([patch for hook in hooks if (patch := hook.variant(version))]):
        raise WorktreeError(
            f"patches/ has changed since {tree.folder} was made.",
            hint=f"Keep your commits (`git -C {tree.folder} format-patch {OVERLAY}`), then"
            f" `nox -s edit -- {version} --discard`, and `git am` what is still to be done.",
        )
    return tree


def _renew(
    hook: CommittedHook,
    version: str,
    taken: Mapping[str, Patch | None],
    queue: PatchQueue,
    releases: Mapping[str, HookedTree],
    patches: Path,
) -> dict[str, Patch]:
    """Find which releases take a hook as it is now, and let them.

    Parameters: `taken`, the variant that each release has taken so far; `releases`, with the hooks before this one.
    Returns the new variant for each release that takes it; none, if the hook is as it was.
    """
    old = taken[version]
    same = old is not None and _effect(old, hook) == hook.after
    if old is not None and same and all(old.header[field] == hook.header[field] for field in ("Subject", *ASKED)):
        return {}
    diff = old.diff if old is not None and same else make_diff(hook.before, hook.after)
    queue.add_variant(hook.name, [version], hook.header, diff)
    new = queue.variant(hook.name, version, patches)
    # What another variant serves stays with it: a change is for the releases that had what it changes.
    others = [v for v in releases if taken[v] is old and v != version]
    fitting = others if same else [v for v in others if relocate(new, releases[version], releases[v]).settled]
    for v in fitting:
        queue.take(hook.name, v, like=version)
    if left := [v for v in others if v not in fitting]:
        keep = f"keep {old.path.name}" if old else "do without it"
        console.line(f"\n  {hook.name} does not fit {', '.join(left)}, which {keep}.")
    return dict.fromkeys([version, *fitting], new)


def _effect(patch: Patch, hook: CommittedHook) -> Mapping[str, bytes] | None:
    """Return what a patch makes of the files as a commit found them, None if it does not apply to them."""
    try:
        return apply_series([patch], hook.before.get, hook.commit.sha)
    except PatchError:
        return None


def _apply(patch: Patch, release: HookedTree) -> None:
    touched = apply_series([patch], release.read, f"sglang {release.sources.version}")
    compile_all(touched)
    release.touched.update(touched)


def _check_effect(tree: Worktree, made: HookedTree, committed: Mapping[str, CommittedHook]) -> None:
    """Raise WorktreeError if the hooks, in the series' order, do not make the files that the worktree has."""
    names = {name for hook in committed.values() for name in hook.after}
    if different := [name for name in sorted(names) if made.read(name) != tree.read("HEAD", name)]:
        raise WorktreeError(
            *(f"{name} would not be what {tree.folder} has." for name in different),
            hint=REPORT,
        )


def _overlay_changes(tree: Worktree, project: Project) -> dict[str, bytes | None]:
    """Return the overlay's files that the commits change, by path, with their content, None where they are removed.

    Raises WorktreeError if a file has changed in overlay/ too since then, or would not go into any wheel; BuildError if
    one does not compile.
    """
    upstream, exported = tree.names(UPSTREAM) - project.replaces, ExportedState.read(tree).exported
    found: dict[str, bytes | None] = {}
    faults = []
    for name in sorted(tree.changed_since(exported) - upstream):
        path = project.overlay / name
        here = path.read_bytes() if path.is_file() else None
        new = tree.read("HEAD", name)
        if here == new:
            continue
        if here != tree.read(exported, name):
            faults.append(f"{path} has changed since {tree.folder} was made, and there too.")
        if not name.startswith("sglang/"):
            faults.append(f"{tree.folder / name} would not go into any wheel: it is not under sglang/.")
        found[name] = new
    if faults:
        raise WorktreeError(*faults, hint="Settle it there and commit, and export again.")
    compile_all({name: data for name, data in found.items() if data is not None})
    return found
