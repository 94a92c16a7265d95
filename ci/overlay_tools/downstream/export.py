"""The commits of a worktree written back to patches/ and overlay/, all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.specifiers import SpecifierSet

from overlay_tools import console
from overlay_tools.downstream.committed_hooks import Ask, CommittedHook, read_committed_hooks
from overlay_tools.downstream.edit import worktree_of
from overlay_tools.downstream.export_contract import make_plan
from overlay_tools.downstream.export_plan import Exported
from overlay_tools.downstream.exported_state import ExportedState, digests
from overlay_tools.downstream.overlay_plan import OverlayPlan, files_to_write, plan_overlay
from overlay_tools.downstream.staging import stage
from overlay_tools.downstream.transaction import read_checkout, undo, write_patches
from overlay_tools.downstream.wheel_names import why_not_taken
from overlay_tools.downstream.worktree import OVERLAY, UPSTREAM, Worktree
from overlay_tools.errors import REPORT, PatchError, WorktreeError
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.lint import load_checked_series
from overlay_tools.patches.model import Hook, renames, target_of, variants_of
from overlay_tools.settings import Project
from overlay_tools.upstream.lockfile import get_release, load_lock
from overlay_tools.upstream.source_tree import open_source_tree
from overlay_tools.wheels.overlay_files import check_ranges, compile_all, read_own


def export(
    project: Project,
    cache: Path,
    version: str,
    *,
    wanted: SpecifierSet | None = None,
    ask: Ask | None = None,
    agree: Callable[[str], bool],
) -> list[str]:
    """Write back what a worktree's commits change of hooks and of overlay files.

    Parameters: `wanted`, the releases beside this one that are to take what is new or changed, None for those where it
    belongs; `ask` asks a person for a field of a new hook's header, None if no one is there to ask; `agree` asks
    whether to write what has been shown, though hooks or files go to more releases than until now, or than they fit.
    Returns the paths that were written or removed; a worktree without a change changes none.
    Raises WorktreeError for commits that cannot be taken over or if no one agrees, PatchError for hooks that do not
    hold.
    """
    undo(project.root)
    seen = read_checkout(project.root)
    lock = load_lock(project.lock)
    get_release(lock, version, project.lock)
    check_ranges(project, lock)
    hooks = load_checked_series(project.patches, list(lock))
    tree = _open_worktree(project, version, hooks)
    state = tree.state()
    committed = read_committed_hooks(tree, hooks, version, project.replaced(version), ask)
    exported = Exported(hooks=hooks, committed=committed, version=version, wanted=wanted, patches=project.patches)
    overlay = _overlay_changes(tree, project, version, committed, _renamed_by(hooks, version))
    others = files_to_write(project, overlay, version, wanted)
    with ExitStack() as stack:
        sources = {v: stack.enter_context(open_source_tree(lock[v], cache)) for v in lock}
        with console.step(f"Try {len(committed)} hooks on {len(lock)} releases"):
            plan, broken = make_plan(project, exported, sources, others)
        if broken:
            raise PatchError(*broken, hint="Mend it in the worktree; what does no harm is waived in ci/contract.toml.")
        _check_effect(tree, plan.releases[version], committed)
        files = plan.files()
        added = plan_overlay(project, files, others, sources, overlay) if overlay else OverlayPlan(rows=[], misfits=[])
    with TemporaryDirectory() as folder:
        staged = stage(Path(folder), files, project.patches, list(lock))
    if rows := plan.rows() + added.rows:
        console.grid(("hook or file", "releases", "outcome"), rows)
    doubts = [f"{', '.join(plan.widened)} would become due where it was not"] * bool(plan.widened)
    doubts += [f"{', '.join(added.misfits)} would go to releases that it does not fit"] * bool(added.misfits)
    if doubts and not agree(" and ".join(doubts)):
        raise WorktreeError(
            "Nothing was written.",
            hint="`--releases` says which other releases take a hook or a new file, [tool.sglang-overlay.files] of"
            " pyproject.toml which take one that is there.",
        )
    if tree.state() != state:
        raise WorktreeError(
            f"{tree.folder} has changed since it was read.", hint="Nothing was written. Commit, and export again."
        )
    changed = write_patches(project.patches, files, others, seen=seen)
    ExportedState.note(tree, variants_of(staged, version))
    return changed


def _open_worktree(project: Project, version: str, hooks: Sequence[Hook]) -> Worktree:
    """Return the worktree of a release.

    Raises WorktreeError if there is none, something in it is not committed, a rebase or the like has stopped midway, or
    the hooks are no longer those that it was made with.
    """
    tree = worktree_of(project, version)
    if not tree.folder.exists():
        raise WorktreeError(f"There is no worktree {tree.folder}.", hint=f"`nox -s edit -- {version}` makes it.")
    # HEAD would lack commits that are still to come, and their files.
    tree.check_not_under_way(WorktreeError, "then export again")
    if dirty := tree.uncommitted():
        raise WorktreeError(
            *(f"{tree.folder / name} is not committed." for name in dirty),
            hint=f"Commit or remove it, or name it in {tree.folder / '.git' / 'info' / 'exclude'}.",
        )
    if ExportedState.read(tree).patches != digests(variants_of(hooks, version)):
        raise WorktreeError(
            f"patches/ has changed since {tree.folder} was made.",
            hint=f"Keep your commits (`git -C {tree.folder} format-patch {OVERLAY}`), then"
            f" `nox -s edit -- {version} --discard`, and `git am` what is still to be done.",
        )
    return tree


def _check_effect(tree: Worktree, made: HookedTree, committed: Mapping[str, CommittedHook]) -> None:
    """Raise WorktreeError if the hooks, in the series' order, do not make the files that the worktree has."""
    names = {name for hook in committed.values() for name in hook.after}
    if different := [name for name in sorted(names) if made.read(name) != tree.read("HEAD", name)]:
        raise WorktreeError(
            *(f"{name} would not be what {tree.folder} has." for name in different),
            hint=REPORT,
        )


def _renamed_by(hooks: Sequence[Hook], version: str) -> set[str]:
    """Return the names that the hooks of a release give files of upstream's."""
    patches = variants_of(hooks, version)
    return {target_of(file) for patch in patches for file in patch.files if renames(file)}


def _overlay_changes(
    tree: Worktree, project: Project, version: str, committed: Mapping[str, CommittedHook], renamed: Set[str]
) -> dict[str, bytes | None]:
    """Return the overlay's files that the commits change, by path, with their content, None where they are removed.

    Parameters: `committed`, the hooks of the commits, whose files are not the overlay's; `renamed`, names that hooks
    have given files of upstream's until now.
    Raises WorktreeError if a file has changed in overlay/ too since then, or would not go into any wheel; BuildError if
    one does not compile.
    """
    exported = ExportedState.read(tree).exported
    upstream = (tree.names(UPSTREAM) - project.replaced(version)).union(*(hook.after for hook in committed.values()))
    found: dict[str, bytes | None] = {}
    faults = [
        f"{tree.folder / name} is {kind}; only ordinary files go to overlay/."
        for name, kind in tree.unusual_since(exported).items()
        if name not in upstream and kind.startswith("a ")  # a link or a submodule
    ]
    for name in sorted((tree.changed_since(exported) | renamed) - upstream):
        path = project.overlay / name
        here = read_own(project.root, name)
        new = tree.read("HEAD", name)
        if here == new:
            continue
        if here is not None and not project.takes(version, name):
            faults.append(f"{path} is there for other releases than {version}, as {project.settings} says.")
        elif here != (None if name in renamed else tree.read(exported, name)):
            faults.append(f"{path} has changed since {tree.folder} was made, and there too.")
        if new is not None and (why := why_not_taken(name)):
            faults.append(f"{tree.folder / name} would go into no wheel: {why}.")
        found[name] = new
    if faults:
        raise WorktreeError(*faults, hint="Settle it there and commit, and export again.")
    compile_all({name: data for name, data in found.items() if data is not None})
    return found
