"""Change hooks and overlay files with ordinary git: a worktree to edit, and its commits written back."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from overlay_tools import console
from overlay_tools.downstream.diff import make_diff
from overlay_tools.downstream.queue import PatchQueue
from overlay_tools.downstream.transaction import stage, undo, write_patches
from overlay_tools.downstream.worktree import OVERLAY, UPSTREAM, Commit, Worktree, message_of
from overlay_tools.errors import REPORT, PatchError, WorktreeError
from overlay_tools.patches.apply import apply_series
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.lint import lint
from overlay_tools.patches.model import README, Hook, Patch
from overlay_tools.patches.relocate import relocate
from overlay_tools.patches.series import load_series
from overlay_tools.settings import Project
from overlay_tools.upstream.download import fetch
from overlay_tools.upstream.lockfile import get_release, load_lock
from overlay_tools.upstream.source_tree import open_source_tree, source_wheel
from overlay_tools.wheels.overlay_files import compile_all, read_package

_WORKTREES = Path(".nox", "worktrees")  # .nox/edit is the session's environment, which nox may remove
ASKED = ("Why", "Forwarded", "Remove-When")
Ask = Callable[[str, str], str]  # what a hook is called, and which field of its header is wanted


@dataclass(frozen=True, kw_only=True, slots=True)
class Edited:
    """A hook as a commit has it: its header, and the upstream files that it changes, before and after."""

    name: str
    commit: Commit
    header: Mapping[str, str]
    before: Mapping[str, bytes]
    after: Mapping[str, bytes]


def edit(project: Project, cache: Path, version: str, *, discard: bool) -> Worktree:
    """Open a locked release as a worktree: upstream's files, the overlay's, and one commit a hook.

    A worktree that is there and holds nothing of a person's is made anew; with `discard`, any is.
    Raises WorktreeError if it holds work that is not exported; LockError, PatchError as the series or the lock demand.
    """
    undo(project.root)
    lock, hooks = load_lock(project.lock), load_series(project.patches)
    release = get_release(lock, version, project.lock)
    tree = worktree_of(project, version)
    if tree.folder.exists() and not discard and (work := _work(tree)):
        raise WorktreeError(
            *work,
            hint=f"`nox -s export -- {version}` writes commits back; `nox -s edit -- {version} --discard` does not.",
        )
    patches = [patch for hook in hooks if (patch := hook.variant(version))]
    with console.step(f"Open sglang {version} in {tree.folder.relative_to(project.root)}"):
        base = fetch(release, source_wheel(release), cache)
        new = tree.folder.with_name(f".{version}.new")
        shutil.rmtree(new, ignore_errors=True)
        part = Worktree.create(new, base, read_package(project.overlay, "sglang"))
        for patch in patches:
            read = lambda name: path.read_bytes() if (path := part.folder / name).is_file() else None  # noqa: E731
            part.write(apply_series([patch], read, f"sglang {version}"))
            part.commit_hook(patch)
        _remember(part, patches)
        shutil.rmtree(tree.folder, ignore_errors=True)
        part.folder.rename(tree.folder)
    return tree


def export(project: Project, cache: Path, version: str, ask: Ask | None) -> list[str]:
    """Write what a worktree's commits change of hooks and of overlay files back, all of it or nothing.

    Parameters: `ask` asks a person for a field of a new hook's header, None if there is no one to ask.
    Returns the paths that were written or removed; a worktree without a change changes none.
    Raises WorktreeError for commits that cannot be taken over, PatchError for hooks that do not hold.
    """
    undo(project.root)
    lock, hooks = load_lock(project.lock), load_series(project.patches)
    get_release(lock, version, project.lock)
    if faults := lint(hooks, list(lock)):
        raise PatchError(*faults, hint="Mend the series first; patches/README.md says how.")
    tree = worktree_of(project, version)
    if not tree.folder.exists():
        raise WorktreeError(f"There is no worktree {tree.folder}.", hint=f"`nox -s edit -- {version}` makes it.")
    if dirty := tree.uncommitted():
        raise WorktreeError(*(f"{tree.folder / name} is not committed." for name in dirty), hint="Commit or remove it.")
    _check_memory(tree, version, hooks)
    edited = _read_commits(tree, project, version, hooks, ask)
    overlay = _overlay_changes(tree, project)
    queue, old = PatchQueue(hooks, list(lock)), {hook.name: hook for hook in hooks}
    with ExitStack() as stack, console.step(f"Try {len(edited)} hooks on {len(lock)} releases"):
        trees = {v: HookedTree(stack.enter_context(open_source_tree(lock[v], cache))) for v in lock}
        for name in {**old, **edited}:  # a new hook goes to the end of the series
            taking = {v: old[name].variant(v) if name in old else None for v in trees}
            if name in edited:
                _take(edited[name], version, taking, queue, trees, project.patches)
            for v, patch in taking.items():
                if patch is not None:
                    _apply(patch, v, trees[v])
        _check_effect(tree, trees[version], edited)
    files = queue.files((project.patches / "series").read_text(encoding="utf-8"))
    with TemporaryDirectory() as folder:
        staged = stage(Path(folder), files, project.patches, list(lock))
    changed = write_patches(project.patches, files, {f"overlay/{name}": data for name, data in overlay.items()})
    _remember(tree, [patch for hook in staged if (patch := hook.variant(version))])
    return changed


def worktree_of(project: Project, version: str) -> Worktree:
    """Return the worktree of a release, whether or not it has been made."""
    return Worktree(project.root / _WORKTREES / version)


def worktrees(project: Project) -> list[str]:
    """Return the releases that have a worktree."""
    folder = project.root / _WORKTREES
    return [path.name for path in sorted(folder.iterdir()) if path.name[0] != "."] if folder.exists() else []


def _work(tree: Worktree) -> list[str]:
    """Return what a worktree holds that only it has."""
    lines = [f"{tree.folder / name} is not committed." for name in tree.uncommitted()]
    if tree.git("rev-parse", "HEAD").strip() != _memory(tree).get("exported"):
        lines.append(f"{tree.folder} has commits that are not exported.")
    return lines


def _remember(tree: Worktree, patches: Sequence[Patch]) -> None:
    """Note in the worktree which commit patches/ and overlay/ agree with, and the variants that this holds for."""
    memory = {"exported": tree.git("rev-parse", "HEAD").strip(), "patches": {p.hook: _digest(p) for p in patches}}
    (tree.folder / ".git" / "sglang-overlay.json").write_text(json.dumps(memory), encoding="utf-8")


def _digest(patch: Patch) -> str:
    """Return the hash of what a patch says and does, whichever releases it applies to."""
    return hashlib.sha256((message_of(patch) + patch.diff).encode()).hexdigest()


def _memory(tree: Worktree) -> dict[str, object]:
    try:
        return dict(json.loads((tree.folder / ".git" / "sglang-overlay.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _check_memory(tree: Worktree, version: str, hooks: Sequence[Hook]) -> None:
    now = {patch.hook: _digest(patch) for hook in hooks if (patch := hook.variant(version))}
    if _memory(tree).get("patches") != now:
        raise WorktreeError(
            f"patches/ has changed since {tree.folder} was made.",
            hint=f"Keep your commits (`git -C {tree.folder} format-patch {OVERLAY}`), then"
            f" `nox -s edit -- {version} --discard`, and `git am` what is still to be done.",
        )


def _read_commits(
    tree: Worktree, project: Project, version: str, hooks: Sequence[Hook], ask: Ask | None
) -> dict[str, Edited]:
    """Return the hooks among the commits by name, in order; every fault of any of them is raised at once."""
    upstream = tree.names(UPSTREAM) - project.replaces
    faults: list[str] = []
    edited: dict[str, Edited] = {}
    for commit in tree.commits():
        what = f"{tree.folder}: commit {commit.sha} ({commit.subject})"
        if commit.parents != 1:
            faults.append(f"{what} is a merge; rebase instead.")
            continue
        if re.match(r"(?:fixup|squash|amend)! ", commit.subject):
            faults.append(f"{what} is not squashed: `git -C {tree.folder} rebase -i --autosquash {OVERLAY}` does it.")
            continue
        mine = sorted(name for name in commit.changed if name in upstream)
        faults += [f"{what} removes {n}, which is upstream's." for n in mine if commit.changed[n] == "D"]
        before = {name: tree.read(f"{commit.sha}~", name) or b"" for name in mine}
        after = {name: tree.read(commit.sha, name) or b"" for name in mine}
        if not commit.changed or (mine and before == after):
            faults.append(f"{what} changes no line of any file; drop it.")
            continue
        if not mine:
            continue  # files of the overlay's own
        name = commit.trailers.get("Hook") or re.sub(r"[^a-z0-9]+", "-", commit.subject.lower()).strip("-")
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII) or name in ("series", README):
            faults.append(f"{what}: {name!r} is not a name for a hook; give its message a trailer `Hook: NAME`.")
            continue
        if name in edited:
            faults.append(f"{what} is a second commit of hook {name}: `git rebase -i` makes them one.")
            continue
        old = next((patch for hook in hooks if hook.name == name for patch in hook.variants[-1:]), None)
        old = next((patch for hook in hooks if hook.name == name and (patch := hook.variant(version))), old)
        header = {"Subject": commit.subject, "Why": commit.body, **commit.trailers}
        for field in ASKED:
            if not header.get(field):
                header[field] = old.header[field] if old else ask(name, field) if ask else ""
        if lacking := [field for field in ASKED if not header[field]]:
            faults.append(
                f"{what} would be the new hook {name}, and its message has no {', '.join(lacking)}: `git commit"
                " --amend` it, Why as the body, the others as trailers; or `git rebase -i` squashes it into its hook."
            )
        edited[name] = Edited(name=name, commit=commit, header=header, before=before, after=after)
    due = [hook.name for hook in hooks if hook.variant(version)]
    faults += [f"{tree.folder}: hook {name} no longer has a commit." for name in due if name not in edited]
    old_ones = [hook.name for hook in hooks if hook.name in edited]
    if not faults and list(edited)[: len(old_ones)] != old_ones:
        faults.append(f"{tree.folder}: its hooks are not in the series' order, new ones last: {', '.join(old_ones)}.")
    if faults:
        raise WorktreeError(*faults, hint="A hook is removed, and the order changed, in patches/.")
    return edited


def _take(
    item: Edited,
    version: str,
    taking: dict[str, Patch | None],
    queue: PatchQueue,
    trees: Mapping[str, HookedTree],
    patches: Path,
) -> None:
    """Find which releases take a hook as it is now, and let them.

    Parameters: `taking`, the variant that each release takes, to be changed; `trees`, the releases with the hooks
    before this one.
    """
    old = taking[version]
    same = old is not None and _effect(old, item) == item.after
    if old is None or not same or any(old.header[field] != item.header[field] for field in ("Subject", *ASKED)):
        diff = old.diff if old is not None and same else make_diff(item.before, item.after)
        queue.renew(item.name, [version], item.header, diff)
        new = queue.patch(item.name, version, patches)
        # What another variant serves stays with it: a change is for the releases that had what it changes.
        others = [v for v in trees if taking[v] is old and v != version]
        fitting = others if same else [v for v in others if relocate(new, trees[version], trees[v]).settled]
        for v in fitting:
            queue.take(item.name, v, version)
        taking |= dict.fromkeys([version, *fitting], new)
        if left := [v for v in others if v not in fitting]:
            keep = f"keep {old.path.name}" if old else "do without it"
            console.line(f"\n  {item.name} does not fit {', '.join(left)}, which {keep}.")


def _apply(patch: Patch, version: str, tree: HookedTree) -> None:
    touched = apply_series([patch], tree.read, f"sglang {version}")
    compile_all({name: data for name, data in touched.items() if name.endswith(".py")})
    tree.touched.update(touched)


def _effect(patch: Patch, item: Edited) -> Mapping[str, bytes] | None:
    try:
        return apply_series([patch], item.before.get, item.commit.sha)
    except PatchError:
        return None


def _check_effect(tree: Worktree, made: HookedTree, edited: Mapping[str, Edited]) -> None:
    """Raise WorktreeError if the hooks, in the series' order, do not make the files that the worktree has."""
    names = {name for item in edited.values() for name in item.after}
    if different := [name for name in sorted(names) if made.read(name) != tree.read("HEAD", name)]:
        raise WorktreeError(
            *(f"{name} would not be what {tree.folder} has." for name in different),
            hint=REPORT,
        )


def _overlay_changes(tree: Worktree, project: Project) -> dict[str, bytes | None]:
    """Return the overlay's files that the commits change, by path, with their content, None where they are removed.

    Raises WorktreeError if a file has changed in overlay/ too since then, or goes into no wheel; BuildError if one does
    not compile.
    """
    upstream, exported = tree.names(UPSTREAM) - project.replaces, str(_memory(tree)["exported"])
    words = ("diff-tree", "-r", "-z", "--no-renames", "--name-only", exported, "HEAD")
    found: dict[str, bytes | None] = {}
    faults = []
    for name in sorted(set(tree.git(*words).split("\0")) - {""} - upstream):
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
