"""Carry the overlay to a release that is not locked yet: its hooks, its contract, its wheel; then lock it.

Nothing in patches/ and upstream.lock changes before all of it holds. Until then, what a person has to settle is in
.nox/porting: the release as it is to be locked, and a worktree with a commit for each hook, open ones with markers.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from packaging.version import InvalidVersion, Version

from overlay_tools import console
from overlay_tools.downstream.answers import GO_ON, Answers
from overlay_tools.downstream.follow import Follower, HunkReport, LockedReleases, count_outcomes, nearest_of, show
from overlay_tools.downstream.not_due import Ask, NotDue
from overlay_tools.downstream.overlay_plan import left_behind
from overlay_tools.downstream.port_state import PortState, in_progress, no_port
from overlay_tools.downstream.port_worktree import check_out, prepare
from overlay_tools.downstream.queue import PatchQueue
from overlay_tools.downstream.selection import NOTHING, Wanted, select
from overlay_tools.downstream.staging import staged_project
from overlay_tools.downstream.transaction import read_checkout, undo, write_patches
from overlay_tools.downstream.trial import broken_contract, build_and_verify
from overlay_tools.downstream.worktree import Worktree
from overlay_tools.errors import PortError
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.lint import load_checked_series
from overlay_tools.patches.model import Hook
from overlay_tools.patches.series import load_series
from overlay_tools.settings import Project
from overlay_tools.upstream.asked import AskedRelease, say_files_elsewhere
from overlay_tools.upstream.download import fetch
from overlay_tools.upstream.lockfile import Lock, Release, dump_lock, load_lock
from overlay_tools.upstream.source_tree import SourceTree, open_source_tree, source_wheel
from overlay_tools.user_files import read_text
from overlay_tools.wheels.overlay_files import read_package

_BEGIN_ANEW = "Put that file back, or begin with the one that is there: `nox -s port -- --abort` gives this port up."
_TRY_AGAIN = (
    "Check the network, and that the index still has this file, then run this again; `nox -s port -- --abort` gives up"
    " a port that is under way."
)
_FOR_NOT_DUE = "--take and --leave are for hooks that are not due; `nox -s port -- --abort` lets you begin again."

_MANY = 50  # hunks: with more of them open, an error has a line for each hook and none for each hunk


class Port:
    """The one port that can be in progress in a checkout.

    Parameters: `announce`, whether it says in the end what was written, and what to do next.
    """

    def __init__(self, project: Project, cache: Path, *, announce: bool = True) -> None:
        self.project, self.cache, self.announce = project, cache, announce
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
        seen = read_checkout(self.project.root)
        if in_progress(self.folder):
            other = PortState.read(self.folder).release.version
            raise PortError(f"A port to sglang {other} is in progress in {self.folder}.", hint=f"Settle it, {GO_ON}.")
        lock = load_lock(self.project.lock)
        hooks = load_checked_series(self.project.patches, list(lock))
        release = _find_locked(lock, version)
        if release is None:
            release = query(version)
        selection = select(hooks, release.version, wanted)
        if selection.faults:
            raise PortError(*selection.faults, hint=_FOR_NOT_DUE)
        _check_dropped(hooks, selection.dropped, release.version, lock)
        if release.version in lock and not selection.taken + selection.dropped:
            raise _locked(release.version, hooks)
        shutil.rmtree(self.folder, ignore_errors=True)
        state = PortState(release=release, taken=selection.taken, left=selection.left, dropped=selection.dropped)
        return self._advance(state, hooks, ask, seen)

    def resume(self, wanted: Wanted = NOTHING, *, ask: Ask | None = None) -> list[HunkReport]:
        """Take over what a person has settled in the worktree, and go on.

        Parameters: as those of `start`.
        Returns the same as `start`.
        Raises PortError if no port is in progress, or something is still open.
        """
        state = PortState.read(self.folder)
        undo(self.project.root)
        seen = read_checkout(self.project.root)
        self._end_move(state)
        hooks = load_series(self.project.patches)
        said = select(hooks, state.release.version, wanted, state.taken)
        held = self._held() if said.left else set[str]()
        faults = [f"Hook {name} has a commit in {self.tree.folder}." for name in said.left if name in held]
        if said.faults + faults:
            hint = f"`--drop HOOK` takes a hook out of the worktree. {_FOR_NOT_DUE}"
            raise PortError(*said.faults, *faults, hint=hint)
        _check_dropped(hooks, said.dropped, state.release.version, load_lock(self.project.lock))
        state = dataclasses.replace(
            state,
            dropped=[*dict.fromkeys([*(name for name in state.dropped if name not in said.taken), *said.dropped])],
            taken=[*(name for name in state.taken if name not in said.left), *said.taken],
            left=[*(name for name in state.left if name not in said.taken), *said.left],
        )
        state.write(self.folder)  # what was said holds, whatever comes
        return self._advance(state, hooks, ask, seen)

    def abort(self) -> None:
        """Give up a port; nothing but .nox/porting goes.

        Raises PortError if none is in progress.
        """
        undo(self.project.root)
        if not in_progress(self.folder):
            raise no_port()
        shutil.rmtree(self.folder)

    def _advance(
        self, state: PortState, hooks: Sequence[Hook], ask: Ask | None, seen: Mapping[str, bytes | None]
    ) -> list[HunkReport]:
        """Follow the hooks; where all of them hold, try the release and lock it."""
        release, wheel = state.release, source_wheel(state.release)
        lock = load_lock(self.project.lock)
        locked_before = release.version in lock
        versions = sorted({*lock, release.version}, key=Version)
        queue = PatchQueue(hooks, versions)
        with console.step(f"Fetch {wheel.name}"):
            if locked_before:
                fetch(release, wheel, self.cache)
            else:
                fetch(release, wheel, self.cache, source="the port", hint=_BEGIN_ANEW if wheel.path else _TRY_AGAIN)
        with ExitStack() as stack:
            sources = stack.enter_context(open_source_tree(release, self.cache))
            answers = Answers(self.tree, hooks, state.open, state.dropped) if self.tree.folder.exists() else None
            locked = LockedReleases(lock, self.cache, stack)
            follower = Follower(HookedTree(sources), locked, queue, answers, state, self.project.patches)
            not_due = NotDue(state.taken, state.left, ask)
            for number, hook in enumerate(hooks):
                if hook.name in state.dropped:
                    follower.drop(hook)
                elif hook.due.contains(release.version, prereleases=True):
                    follower.follow(hook, hooks[:number])
                elif not locked_before or hook.name in state.taken:
                    follower.consider(hook, hooks[:number], not_due)
            follower.finish()
            show(follower.reports)
            state = dataclasses.replace(state, taken=not_due.taken, left=not_due.left)
            self._stop_at_questions(state, not_due.open)
            state = self._update_worktree(state, follower, sources)
            self._stop_at_open(follower)
            self._stop_at_kept_aside()
            read = self.tree.state() if self.tree.folder.exists() else None
            files = queue.files(read_text(self.project.patches / "series"))
            self._try(state, files, versions, sources)
        if read is not None and self.tree.state() != read:
            raise PortError(f"{self.tree.folder} has changed since it was read.", hint=f"Settle it, {GO_ON}.")
        text = dump_lock({**lock, release.version: release})
        changed = write_patches(self.project.patches, files, {self.project.lock.name: text.encode()}, seen=seen)
        shutil.rmtree(self.folder, ignore_errors=True)
        if not self.announce:
            return follower.reports
        done = "takes what was carried to it" if locked_before else "is locked"
        console.line("\n  ".join([f"sglang {release.version} {done}.", *changed]), style="green")
        if not locked_before:
            say_files_elsewhere(release)
            for before in [v for v in versions if Version(v) < Version(release.version)][-1:]:
                for line in left_behind(self.project, before, release.version):
                    console.line(line, style="yellow")
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

    def _held(self) -> set[str]:
        """Return the hooks that have a commit in the worktree, if there is one."""
        commits = self.tree.commits() if self.tree.folder.exists() else []
        return {commit.trailers.get("Hook", "") for commit in commits}

    def _update_worktree(self, state: PortState, follower: Follower, sources: SourceTree) -> PortState:
        """Give each hook its commit in the worktree, which is opened if a hook is open; return the state noted then."""
        state = dataclasses.replace(
            state,
            open=[relocated.patch.hook for relocated in follower.open],
            followed=follower.followed,
            kept=follower.kept,
            placeless=follower.placeless,
            move=None,
        )
        if not self.tree.folder.exists():
            if not follower.open:
                return state
            with console.step(f"Open a worktree of sglang {sources.version}"):
                Worktree.create(self.tree.folder, sources.path, read_package(self.project, "sglang", sources.version))
        state = dataclasses.replace(state, move=prepare(self.tree, follower.commits))
        state.write(self.folder)
        return self._end_move(state)

    def _end_move(self, state: PortState) -> PortState:
        """Check out what was prepared in the worktree, if that has not ended, and note that it has."""
        if state.move is None or not self.tree.folder.exists():
            return state
        check_out(self.tree, state.move)
        state = dataclasses.replace(state, move=None)
        state.write(self.folder)
        return state

    def _stop_at_open(self, follower: Follower) -> None:
        """Raise PortError if hooks are open."""
        if not follower.open:
            return
        placements = [place for relocated in follower.open for place in relocated.placements if not place.settled]
        lines = [f"{place.where}: {place.outcome}: {place.note}" for place in placements]
        if len(lines) > _MANY:
            lines = [f"{hook.patch.path}: {count_outcomes(hook.placements)}" for hook in follower.open]
        waiting = f" {len(follower.waiting)} more wait for them, and come next." if follower.waiting else ""
        raise PortError(
            *lines,
            hint=f"Settle all of it in {self.tree.folder}: what is proposed stands between markers; {GO_ON}.{waiting}",
        )

    def _stop_at_kept_aside(self) -> None:
        """Raise PortError if the worktree, which goes when all holds, has something of a person's that no hook has."""
        if aside := self.tree.kept_aside("HEAD") if self.tree.folder.exists() else []:
            raise PortError(
                *(f"{self.tree.folder}: {what} is in no hook, and would go with the worktree." for what in aside),
                hint=f"Take it elsewhere, or remove it; {GO_ON}.",
            )

    def _try(self, state: PortState, files: Mapping[str, str], versions: Sequence[str], sources: SourceTree) -> None:
        """See that the contract holds and the wheel is as it should be with what patches/ is to be."""
        with staged_project(self.project, files, versions) as staged:
            with console.step("Check the contract and base mentions"):
                lines = self._replaces_nothing(staged.project, sources) + broken_contract(staged.project, sources)
            if lines:
                state.write(self.folder)
                raise PortError(*lines, hint=f"Change overlay/, a hook or ci/contract.toml, {GO_ON}.")
            with console.step(f"Build and verify sglang {staged.project.overlay_version(sources.version)}"):
                build_and_verify(staged.project, state.release, staged.hooks, self.cache)

    def _replaces_nothing(self, project: Project, sources: SourceTree) -> list[str]:
        """Say which files replace one of the nearest locked release's, older ones first, and none of this one's."""
        lock, version = load_lock(self.project.lock), sources.version
        nearest = nearest_of([*lock] or [version], version)
        replaced = project.replaced(nearest) & project.replaced(version)
        gone = [name for name in sorted(replaced) if sources.read(name) is None]
        if not gone or nearest == version:
            return []
        with open_source_tree(lock[nearest], self.cache) as before:
            return [
                f"pyproject.toml: `replaces` has {name}, which sglang {nearest} has and {version} lacks: change what"
                f" upstream has instead, and limit overlay/{name} to other releases in [tool.sglang-overlay.files]."
                for name in gone
                if before.read(name) is not None
            ]


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
