"""Carry the overlay to a release that is not locked yet: its hooks, its contract, its wheel; then lock it.

Nothing in patches/ and upstream.lock changes before all of it holds. Until then, what a person has to settle is in
.nox/porting: the release as it is to be locked, and a worktree with the hooks that hold, one commit each.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from packaging.version import InvalidVersion, Version

from overlay_tools import console
from overlay_tools.downstream.answers import GO_ON, Answers, commits_by_hook
from overlay_tools.downstream.follow import Follower, HunkReport, LockedReleases, show
from overlay_tools.downstream.not_due import Ask, NotDue
from overlay_tools.downstream.port_state import PortState, in_progress, no_port
from overlay_tools.downstream.queue import PatchQueue
from overlay_tools.downstream.selection import NOTHING, Wanted, select
from overlay_tools.downstream.staging import staged_project
from overlay_tools.downstream.transaction import undo, write_patches
from overlay_tools.downstream.trial import broken_contract, build_and_verify
from overlay_tools.downstream.worktree import Worktree
from overlay_tools.errors import PortError
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.lint import load_checked_series
from overlay_tools.patches.model import Hook
from overlay_tools.patches.relocate import RelocatedPatch
from overlay_tools.patches.series import load_series
from overlay_tools.settings import Project
from overlay_tools.upstream.asked import AskedRelease
from overlay_tools.upstream.download import fetch
from overlay_tools.upstream.lockfile import Lock, Release, dump_lock, load_lock
from overlay_tools.upstream.source_tree import SourceTree, open_source_tree, source_wheel
from overlay_tools.wheels.overlay_files import read_package

_FOR_NOT_DUE = (
    "--take and --leave are for hooks that are not due, before one after them is to be settled;"
    " `nox -s port -- --abort` lets you begin again."
)


class Port:
    """The one port that can be in progress in a checkout."""

    def __init__(self, project: Project, cache: Path) -> None:
        self.project, self.cache = project, cache
        self.folder = project.root / ".nox" / "porting"  # .nox/port is the session's environment, which nox may remove
        self.tree = Worktree(self.folder / "worktree")

    def start(
        self, version: str, query: Callable[[str], Release], wanted: Wanted = NOTHING, *, ask: Ask | None = None
    ) -> list[HunkReport]:
        """Begin with a release, and end at once where everything holds.

        Parameters: `query` looks a release up; `wanted`, what a person says of its hooks; `ask` asks about others that
        are not due. A locked release takes those that it is asked to, and keeps the ones that it has.
        Returns what became of each hunk.
        Raises PortError if something is left to a person, or another port is in progress; LockError if there is no such
        release; PatchError if the series has faults to begin with.
        """
        undo(self.project.root)
        if in_progress(self.folder):
            other = PortState.read(self.folder).release.version
            raise PortError(f"A port to sglang {other} is in progress in {self.folder}.", hint=f"Settle it, {GO_ON}.")
        lock = load_lock(self.project.lock)
        hooks = load_checked_series(self.project.patches, list(lock))
        release = _find_locked(lock, version)
        if release is None:
            with console.step(f"Look up sglang {version}"):
                release = query(version)
        selection = select(hooks, release.version, wanted)
        if selection.faults:
            raise PortError(*selection.faults, hint=_FOR_NOT_DUE)
        _check_dropped(hooks, selection.dropped, release.version, lock)
        if release.version in lock and not selection.taken + selection.dropped:
            raise _locked(release.version, hooks)
        shutil.rmtree(self.folder, ignore_errors=True)
        state = PortState(release=release, taken=selection.taken, left=selection.left, dropped=selection.dropped)
        return self._advance(state, ask, settle=False)

    def resume(self, wanted: Wanted = NOTHING, *, ask: Ask | None = None) -> list[HunkReport]:
        """Take over what a person has settled in the worktree, and go on.

        Parameters: as those of `start`.
        Returns the same as `start`.
        Raises PortError if no port is in progress, or something is still open.
        """
        state = PortState.read(self.folder)
        undo(self.project.root)
        hooks, held = load_series(self.project.patches), commits_by_hook(self.tree)
        names = [hook.name for hook in hooks]
        said = select(hooks, state.release.version, wanted, state.taken)
        faults = [f"Hook {name} has a commit in {self.tree.folder}." for name in said.dropped if name in held]
        if faults or said.faults:
            hint = "What is dropped is the hook to be settled, or one after it." if faults else _FOR_NOT_DUE
            raise PortError(*said.faults, *faults, hint=hint)
        _check_dropped(hooks, said.dropped, state.release.version, load_lock(self.project.lock))
        settled = {*held, state.open} if self.tree.folder.exists() else set[str]()
        if faults := [
            f"Hook {name} cannot be decided anew: {later} stands in {self.tree.folder} already."
            for name in [*said.taken, *said.left]
            for later in names[names.index(name) :]
            if later in settled
        ]:
            raise PortError(*faults, hint=_FOR_NOT_DUE)
        if state.open in said.dropped and self.tree.folder.exists():
            self.tree.git("reset", "--quiet", "--hard")  # what is proposed for it
        state = dataclasses.replace(
            state,
            dropped=[*dict.fromkeys([*state.dropped, *said.dropped])],
            taken=[*(name for name in state.taken if name not in said.left), *said.taken],
            left=[*(name for name in state.left if name not in said.taken), *said.left],
        )
        return self._advance(state, ask, settle=state.open not in state.dropped)

    def abort(self) -> None:
        """Give up a port; nothing but .nox/porting goes.

        Raises PortError if none is in progress.
        """
        undo(self.project.root)
        if not in_progress(self.folder):
            raise no_port()
        shutil.rmtree(self.folder)

    def _advance(self, state: PortState, ask: Ask | None, *, settle: bool) -> list[HunkReport]:
        """Follow the hooks as far as they hold; where all of them do, try the release and lock it.

        Parameters: `settle`, whether what is not committed in the worktree settles a hook.
        """
        release, wheel = state.release, source_wheel(state.release)
        lock, hooks = load_lock(self.project.lock), load_series(self.project.patches)
        versions = sorted({*lock, release.version}, key=Version)
        queue = PatchQueue(hooks, versions)
        with console.step(f"Fetch {wheel.name}"):
            fetch(release, wheel, self.cache)
        with ExitStack() as stack:
            sources = stack.enter_context(open_source_tree(release, self.cache))
            follower = Follower(
                HookedTree(sources),
                LockedReleases(lock, self.cache, stack),
                queue,
                Answers(self.tree, settle=settle),
                self.project.patches,
            )
            not_due = NotDue(state.taken, state.left, ask)
            for number, hook in enumerate(hooks):
                if hook.name in state.dropped:
                    follower.drop(hook)
                elif hook.due.contains(release.version, prereleases=True):
                    follower.follow(hook, hooks[:number])
                elif release.version not in lock or hook.name in state.taken:
                    follower.consider(hook, hooks[:number], not_due)
            show(follower.reports)
            state = dataclasses.replace(state, taken=not_due.taken, left=not_due.left)
            self._stop_at_questions(state, not_due.open)
            self._update_worktree(follower, sources)
            self._stop_at_open(state, follower.open)
            files = queue.files((self.project.patches / "series").read_text(encoding="utf-8"))
            self._try(state, files, versions, sources)
        text = dump_lock({**lock, release.version: release})
        changed = write_patches(self.project.patches, files, {self.project.lock.name: text.encode()})
        shutil.rmtree(self.folder, ignore_errors=True)
        done = "takes what was carried to it" if release.version in lock else "is locked"
        console.line("\n  ".join([f"sglang {release.version} {done}.", *changed]), style="green")
        console.line(f"Next: nox -s test-{release.version}")
        return follower.reports

    def _stop_at_questions(self, state: PortState, hooks: Sequence[str]) -> None:
        """Raise PortError if it is not known whether the release takes hooks; what was said until then is kept."""
        if not hooks:
            return
        version, said = state.release.version, [(name, "--take") for name in hooks]
        if in_progress(self.folder):
            state.write(self.folder)
            begin = "--continue"
        else:
            begin = AskedRelease.again(state.release).words()
            said = [*((name, "--take") for name in state.taken), *((name, "--leave") for name in state.left), *said]
        raise PortError(
            *(f"Hook {name} is not due at sglang {version}, but fits there: is it needed?" for name in hooks),
            hint=f"`nox -s port -- {begin} {' '.join(f'{option} {name}' for name, option in said)}` takes"
            f" {'it' if len(hooks) == 1 else 'them'}; `--leave` instead of `--take` leaves a hook out.",
        )

    def _update_worktree(self, follower: Follower, sources: SourceTree) -> None:
        """Commit what a person has settled; put before an open hook those that hold, and its files with markers."""
        for hook in follower.applied:
            if hook.patch.hook == follower.answers.uncommitted:
                self.tree.commit_hook(hook.patch, hook.files)
        if follower.open is None:
            return
        if not self.tree.folder.exists():
            with console.step(f"Open a worktree of sglang {sources.version}"):
                Worktree.create(self.tree.folder, sources.path, read_package(self.project, "sglang", sources.version))
        committed = commits_by_hook(self.tree)
        for hook in follower.applied:
            if hook.patch.hook not in committed:
                self.tree.commit_hook(hook.patch, hook.files)
        self.tree.propose(follower.open.marked)

    def _stop_at_open(self, state: PortState, relocated: RelocatedPatch | None) -> None:
        """Raise PortError if a hook is open, which the port then notes, or no hook is and yet the worktree has work."""
        folder = self.tree.folder
        if relocated is not None:
            dataclasses.replace(state, open=relocated.patch.hook).write(self.folder)
            raise PortError(
                *(f"{p.where}: {p.outcome}: {p.note}" for p in relocated.placements if not p.settled),
                hint=f"Settle it in {folder}: what is proposed stands between markers; {GO_ON}.",
            )
        if left := self.tree.uncommitted() if folder.exists() else []:
            raise PortError(
                *(f"{folder / name}: no hook is open to take it." for name in left),
                hint=f"Amend the commit of the hook that it belongs to, or take it back; {GO_ON}.",
            )

    def _try(self, state: PortState, files: Mapping[str, str], versions: Sequence[str], sources: SourceTree) -> None:
        """See that the contract holds and the wheel is as it should be with what patches/ is to be."""
        with staged_project(self.project, files, versions) as staged:
            with console.step("Check the contract and base mentions"):
                lines = broken_contract(staged.project, sources)
            if lines:
                dataclasses.replace(state, open="").write(self.folder)
                raise PortError(*lines, hint=f"Change overlay/, a hook or ci/contract.toml, {GO_ON}.")
            with console.step(f"Build and verify sglang {staged.project.overlay_version(sources.version)}"):
                build_and_verify(staged.project, state.release, staged.hooks, self.cache)


def _find_locked(lock: Lock, version: str) -> Release | None:
    """Return a release of the lock, however its version is written, or None if it is not locked."""
    try:
        return next((lock[locked] for locked in lock if Version(locked) == Version(version)), None)
    except InvalidVersion:
        return None


def _check_dropped(hooks: Sequence[Hook], names: Sequence[str], version: str, lock: Lock) -> None:
    """Raise PortError if a release is the only one that takes some of the hooks that are to be dropped there."""
    dropped = [hook for hook in hooks if hook.name in names]
    if alone := [hook.name for hook in dropped if not any(hook.variant(other) for other in lock if other != version)]:
        raise PortError(
            *(f"Hook {name} is due at sglang {version} alone." for name in alone),
            hint="To remove a hook, take its line out of patches/series, and its folder away.",
        )


def _locked(version: str, hooks: Sequence[Hook]) -> PortError:
    """Return the error that a release is locked, and what can be done with it."""
    others = [hook.name for hook in hooks if not hook.due.contains(version, prereleases=True)]
    take = f"`nox -s port -- {version} --take {others[0] if len(others) == 1 else 'HOOK'}` carries a hook to it"
    edit = f"`nox -s edit -- {version}` opens it, to change what it takes."
    there_are = f" that is not due there ({', '.join(others)}; --take '*' takes all); " if others else "; "
    return PortError(f"sglang {version} is locked already.", hint=(take + there_are if others else "") + edit)
