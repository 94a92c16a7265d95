"""Carry the overlay to a release that is not locked yet: its hooks, its contract, its wheel; then lock it.

Nothing in patches/ and upstream.lock changes before all of it holds. Until then, what a person has to settle is in
.nox/porting: the release as it is to be locked, and a worktree with the hooks that hold, one commit each.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from packaging.version import Version

from overlay_tools import console
from overlay_tools.api_check.base_mentions import find_base_mentions
from overlay_tools.api_check.contract import check_contract
from overlay_tools.downstream.diff import make_diff
from overlay_tools.downstream.queue import PatchQueue
from overlay_tools.downstream.transaction import as_if_in, stage, undo, write_patches
from overlay_tools.downstream.worktree import UPSTREAM, Commit, Worktree
from overlay_tools.errors import REPORT, LockError, PatchError, PortError, VerifyError
from overlay_tools.patches.apply import apply_series
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.lint import lint
from overlay_tools.patches.model import Hook, Patch, target_of
from overlay_tools.patches.moving_hunk import Placement
from overlay_tools.patches.relocate import RelocatedPatch, relocate
from overlay_tools.patches.series import load_series
from overlay_tools.settings import Project, load_project
from overlay_tools.upstream.download import fetch
from overlay_tools.upstream.lockfile import Lock, Release, dump_lock, load_lock
from overlay_tools.upstream.source_tree import SourceTree, open_source_tree, source_wheel
from overlay_tools.wheels.builder import build_sglang
from overlay_tools.wheels.overlay_files import compile_all, read_package
from overlay_tools.wheels.verify import verify_wheel


class HunkReport(NamedTuple):
    """What became of a hunk: its hook, where it stands in the new release, the outcome, and what was found."""

    hook: str
    place: str
    outcome: str
    note: str


_GO_ON = "then `nox -s port -- --continue`; `nox -s port -- --abort` gives up, and leaves everything as it was"


@dataclass(kw_only=True, slots=True)
class _State:
    """A port that is going on: the release to be locked, the hooks not due there, and the one to be settled."""

    release: Release
    dropped: list[str] = field(default_factory=list)
    open: str = ""


class Port:
    """The one port that can be going on in a checkout."""

    def __init__(self, project: Project, cache: Path) -> None:
        self.project, self.cache = project, cache
        self.folder = project.root / ".nox" / "porting"  # .nox/port is the session's environment, which nox may remove
        self.tree = Worktree(self.folder / "worktree")

    def start(self, version: str, query: Callable[[str], Release]) -> list[HunkReport]:
        """Begin with a release, and end at once where everything holds.

        Parameters: `query` asks the index for a release.
        Returns what became of each hunk: hook, place, outcome, what was found.
        Raises PortError if something is left to a person, or another port is going on; LockError if there is no such
        release; PatchError if the series has faults to begin with.
        """
        undo(self.project.root)
        if self._state_file.exists():
            going = self._load().release.version
            raise PortError(f"A port to sglang {going} is in progress in {self.folder}.", hint=f"Settle it, {_GO_ON}.")
        lock, hooks = load_lock(self.project.lock), load_series(self.project.patches)
        if faults := lint(hooks, list(lock)):
            raise PatchError(*faults, hint="Mend the series first; patches/README.md says how.")
        with console.step(f"Ask the index for sglang {version}"):
            release = query(version)
        if release.version in lock:
            hint = f"`nox -s edit -- {release.version}` opens it, to change what it takes."
            raise PortError(f"sglang {release.version} is locked already.", hint=hint)
        shutil.rmtree(self.folder, ignore_errors=True)
        return self._advance(_State(release=release))

    def resume(self, drop: Sequence[str] = ()) -> list[HunkReport]:
        """Take over what a person has settled in the worktree, and go on.

        Parameters: `drop`, hooks that are not due at this release.
        Returns the same as `start`.
        Raises PortError if no port is going on, or something is still open.
        """
        state = self._load()
        undo(self.project.root)
        names, held = [hook.name for hook in load_series(self.project.patches)], self.committed()
        faults = [f"There is no hook {name}; there are {', '.join(names)}." for name in drop if name not in names]
        faults += [f"Hook {name} has a commit in {self.tree.folder}." for name in drop if name in held]
        if faults:
            raise PortError(*faults, hint="What is dropped is the hook to be settled, or one after it.")
        state.dropped += [name for name in drop if name not in state.dropped]
        if state.open in drop and self.tree.folder.exists():
            self.tree.git("reset", "--quiet", "--hard")  # what is proposed for it
        return self._advance(state, settle=state.open not in drop)

    def abort(self) -> None:
        """Give up a port; nothing but .nox/porting goes.

        Raises PortError if none is going on.
        """
        undo(self.project.root)
        if not self._state_file.exists():
            raise _none_going_on()
        shutil.rmtree(self.folder)

    def committed(self) -> dict[str, Commit]:
        """Return the commits in the worktree, if there is one, by their hooks."""
        commits = self.tree.commits() if self.tree.folder.exists() else []
        return {commit.trailers.get("Hook", ""): commit for commit in commits}

    @property
    def _state_file(self) -> Path:
        return self.folder / "state.json"

    def _load(self) -> _State:
        try:
            data = json.loads(self._state_file.read_text(encoding="utf-8"))
            (self.folder / "release.lock").write_text(data["release"], encoding="utf-8")
            (release,) = load_lock(self.folder / "release.lock").values()
            return _State(release=release, dropped=data["dropped"], open=data["open"])
        except FileNotFoundError:
            raise _none_going_on() from None
        except (ValueError, KeyError, TypeError, LockError) as error:
            hint = "`nox -s port -- --abort`, and begin again."
            raise PortError(f"{self._state_file} is damaged: {error}.", hint=hint) from None

    def _save(self, state: _State) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / ".state.part"
        release = dump_lock({state.release.version: state.release})
        data = {"release": release, "dropped": state.dropped, "open": state.open}
        part.write_text(json.dumps(data), encoding="utf-8")
        part.replace(self._state_file)

    def _advance(self, state: _State, *, settle: bool = False) -> list[HunkReport]:
        lock, hooks = load_lock(self.project.lock), load_series(self.project.patches)
        version = state.release.version
        versions = sorted({*lock, version}, key=Version)
        queue = PatchQueue(hooks, versions)
        with console.step(f"Fetch {source_wheel(state.release).name}"):
            fetch(state.release, source_wheel(state.release), self.cache)
        with ExitStack() as stack:
            new = HookedTree(stack.enter_context(open_source_tree(state.release, self.cache)))
            follow = _Follower(self, lock, new, queue, stack)
            for number, hook in enumerate(hooks):
                if hook.name in state.dropped:
                    queue.drop(hook.name, version)
                    follow.rows.append(HunkReport(hook.name, "", "dropped", f"not due at {version}"))
                elif hook.due.contains(version, prereleases=True):
                    follow.hook(hook, hooks[:number], settle=settle)
                    settle = settle and follow.settling
            _show_hooks(follow.rows)
            state.open = follow.opened
            if follow.open:
                self._save(state)
                raise _to_settle(self.tree, follow.open)
            if left := self.tree.uncommitted() if self.tree.folder.exists() else []:
                hint = f"Amend the commit of the hook that it belongs to, or take it back; {_GO_ON}."
                raise PortError(
                    *(f"{self.tree.folder / name}: no hook is open to take it." for name in left), hint=hint
                )
            files = queue.files((self.project.patches / "series").read_text(encoding="utf-8"))
            self._try(state, files, versions, new.sources)
        text = dump_lock({**lock, version: state.release})
        changed = write_patches(self.project.patches, files, {self.project.lock.name: text.encode()})
        shutil.rmtree(self.folder, ignore_errors=True)
        console.line("".join([f"sglang {version} is locked.", *(f"\n  {name}" for name in changed)]), style="green")
        console.line(f"Next: nox -s test-{version}")
        return follow.rows

    def _try(self, state: _State, files: Mapping[str, str], versions: Sequence[str], sources: SourceTree) -> None:
        """See that the contract holds and the wheel is as it should be with what patches/ is to be."""
        release, wheel = state.release, source_wheel(state.release)
        with TemporaryDirectory() as folder, as_if_in(self.project.root, folder):
            root = Path(folder)
            for name in ("overlay", "ci", "NOTICE", "LICENSE", "pyproject.toml"):
                (root / name).symlink_to(self.project.root / name)
            hooks, project = stage(root / "patches", files, self.project.patches, versions), load_project(root)
            with console.step("Check the contract and base mentions"):
                lines = _broken(project, sources)
            if lines:
                self._save(state)
                raise PortError(*lines, hint=f"Change overlay/, a hook or ci/contract.toml, {_GO_ON}.")
            with console.step(f"Build and verify sglang {release.version}+overlay.{project.revision}"):
                built = build_sglang(project, release, wheel, fetch(release, wheel, self.cache), hooks)
                if differences := verify_wheel(built.path).differences:
                    raise VerifyError(*differences, hint=REPORT)


class _Follower:
    """Follows the hooks, in order, into the new release; the first that a person must settle opens the worktree."""

    def __init__(self, port: Port, lock: Lock, new: HookedTree, queue: PatchQueue, stack: ExitStack) -> None:
        self.port, self.lock, self.new, self.queue, self.stack = port, lock, new, queue, stack
        self.version = new.sources.version
        self.rows: list[HunkReport] = []
        self.open: list[Placement] = []
        self.opened = ""
        self.settling = True
        self._sources: dict[str, SourceTree] = {}
        self._applied: list[tuple[Patch, dict[str, bytes]]] = []

    def hook(self, hook: Hook, before: Sequence[Hook], *, settle: bool) -> None:
        """Follow one hook, `before` those before it; with `settle`, the worktree settles the first open one."""
        like = self._neighbour(hook)
        patch = hook.variant(like)
        assert patch is not None
        placed = relocate(patch, self._old(like, before), self.new)
        if placed.settled:
            touched = apply_series([patch], self.new.read, f"sglang {self.version}")
            compile_all({name: data for name, data in touched.items() if name.endswith(".py")})
            self.queue.take(hook.name, self.version, like)
            self._show(hook, placed)
            self._record(patch, touched)
        elif self.open:
            self._show(hook, placed)
            self.new.touched.update(placed.files)
        elif (after := self._answer(hook, settle=settle)) is not None:
            self._renew(hook, patch, after)
            if hook.name not in self.port.committed():
                self.port.tree.commit_hook(patch)
        else:
            self._show(hook, placed)
            self.opened = hook.name
            self.open = [placement for placement in placed.placements if not placement.settled]
            self._open_worktree(placed)
            self.new.touched.update(placed.files)

    def _neighbour(self, hook: Hook) -> str:
        """Return the locked release next to the new one, an older one first, that the hook has a variant for."""
        having = [version for version in self.lock if hook.variant(version)]
        older = [version for version in having if Version(version) < Version(self.version)]
        if not having:
            raise PortError(f"Hook {hook.name} is not due for any locked release.", hint="Take it out of the series.")
        return older[-1] if older else having[0]

    def _old(self, version: str, hooks: Sequence[Hook]) -> HookedTree:
        if version not in self._sources:
            release = self.lock[version]
            self._sources[version] = self.stack.enter_context(open_source_tree(release, self.port.cache))
        sources = self._sources[version]
        return HookedTree.apply(sources, hooks)

    def _show(self, hook: Hook, placed: RelocatedPatch) -> None:
        for placement in placed.placements:
            at = f"{placement.file}:{placement.line}" if placement.line else placement.file
            self.rows.append(HunkReport(hook.name, at, placement.outcome, placement.note))

    def _record(self, patch: Patch, touched: dict[str, bytes]) -> None:
        self.new.touched.update(touched)
        self._applied.append((patch, touched))

    def _answer(self, hook: Hook, *, settle: bool) -> dict[str, bytes] | None:
        """Return the files as a person has settled a hook, from its commit or, with `settle`, from the worktree."""
        tree = self.port.tree
        found: dict[str, bytes | None]
        if commit := self.port.committed().get(hook.name):
            found = {name: tree.read(commit.sha, name) for name in commit.changed}
        elif settle and tree.folder.exists():
            self.settling = False
            if marked := tree.markers():
                faults = [f"{where}: there are conflict markers." for where in marked]
                raise PortError(*faults, hint=f"Settle them, {_GO_ON}.")
            paths = {name: tree.folder / name for name in tree.uncommitted()}
            found = {name: path.read_bytes() if path.is_file() else None for name, path in paths.items()}
        else:
            return None
        upstream = tree.names(UPSTREAM)
        if foreign := [tree.folder / name for name in found if name not in upstream]:
            faults = [f"{path} is not one of upstream's files." for path in foreign]
            raise PortError(*faults, hint="Files of our own belong in overlay/: move it there.")
        after = {name: data for name, data in found.items() if data is not None}
        if gone := [tree.folder / name for name in found if name not in after]:
            raise PortError(
                *(f"{path} is one of upstream's files, and it is gone." for path in gone), hint=f"Restore it, {_GO_ON}."
            )
        if not after:
            hint = f"Change it, {_GO_ON}. If the hook is not needed: `nox -s port -- --continue --drop {hook.name}`."
            raise PortError(f"Hook {hook.name}: no file in {tree.folder} has an uncommitted change.", hint=hint)
        compile_all({str(tree.folder / name): data for name, data in after.items()})
        return after

    def _renew(self, hook: Hook, patch: Patch, after: dict[str, bytes]) -> None:
        """Make the variant of the new release from what a person has settled, and see that it has this effect."""
        before = {name: self.new.read(name) or b"" for name in after}
        diff = make_diff(before, after)
        self.queue.renew(hook.name, [self.version], patch.header, diff)
        made = self.queue.patch(hook.name, self.version, self.port.project.patches)
        alone = Hook(name=hook.name, due=hook.due, variants=(made,))
        if faults := lint([alone], [self.version]):
            raise PatchError(*faults, hint=f"That is the diff of what is in {self.port.tree.folder}: mend it there.")
        if apply_series([made], self.new.read, f"sglang {self.version}") != after:
            raise PortError(f"Hook {hook.name}: its diff does not make what {self.port.tree.folder} has.", hint=REPORT)
        for file in made.files:
            self.rows.append(
                HunkReport(hook.name, target_of(file), "settled", f"+{file.added}/-{file.removed} in the worktree")
            )
        self._record(patch, after)

    def _open_worktree(self, placed: RelocatedPatch) -> None:
        """Put the hooks that hold into a worktree, a commit each, and the open one's files with conflict markers."""
        tree = self.port.tree
        if not tree.folder.exists():
            release = self.new.sources.version
            with console.step(f"Open a worktree of sglang {release}"):
                base = self.new.sources.path
                Worktree.create(tree.folder, base, read_package(self.port.project.overlay, "sglang"))
        done = self.port.committed()
        for patch, touched in self._applied:
            if patch.hook not in done:
                tree.write(touched)
                tree.commit_hook(patch)
        tree.write(placed.marked)


def _broken(project: Project, sources: SourceTree) -> list[str]:
    """Return what of the contract does not hold and which base mentions are new, a line each; show the counts."""
    findings, places = check_contract(project, sources), find_base_mentions(project, sources)
    changed = [f for f in findings if f.problem and not f.waived]
    unknown = [p for p in places if not p.classified]
    waived = sum(bool(f.problem) for f in findings) - len(changed)
    console.line(f"contract: {len(findings) - len(changed) - waived} fit, {waived} waived, {len(changed)} changed")
    console.line(f"base mentions: {len(places) - len(unknown)} classified, {len(unknown)} new")
    return [f"{f.where}: {f.kind} {f.what}: {f.problem}." for f in changed] + [
        f"{p.file}:{p.line}: {p.what} in {p.scope} is not classified." for p in unknown
    ]


def _none_going_on() -> PortError:
    return PortError("There is no port in progress.", hint="`nox -s port -- VERSION` begins one.")


def _to_settle(tree: Worktree, open_: Sequence[Placement]) -> PortError:
    lines = [f"{placement.where}: {placement.outcome}: {placement.note}" for placement in open_]
    return PortError(*lines, hint=f"Settle it in {tree.folder}: what is proposed stands between markers; {_GO_ON}.")


def _show_hooks(rows: Sequence[HunkReport]) -> None:
    console.grid(("hook", "place", "outcome", "what was found"), rows)
