"""The hooks of the series followed into a release, all of them in one round: what holds, what is open, what waits."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from packaging.version import Version
from unidiff import PatchedFile

from overlay_tools import console
from overlay_tools.archive.mode import is_executable, with_mode
from overlay_tools.downstream.answers import Answer, Answers, Files
from overlay_tools.downstream.diff import make_diff
from overlay_tools.downstream.not_due import NotDue, is_near
from overlay_tools.downstream.open_file import Side, flatten, put_back
from overlay_tools.downstream.port_state import Followed, Kept, PortState
from overlay_tools.downstream.port_worktree import HookCommit
from overlay_tools.downstream.queue import PatchQueue
from overlay_tools.errors import REPORT, PatchError, PortError
from overlay_tools.patches.apply import apply_if_fits, apply_series
from overlay_tools.patches.edited_file import Part, Region, marked_lines, shown_lines
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.lint import lint
from overlay_tools.patches.model import Hook, Patch, deletes, join_lines, renames, source_of, target_of, variants_of
from overlay_tools.patches.moving_hunk import Placement
from overlay_tools.patches.relocate import RelocatedPatch, relocate
from overlay_tools.upstream.lockfile import Lock
from overlay_tools.upstream.source_tree import SourceTree, open_source_tree
from overlay_tools.wheels.overlay_files import compile_all

STAYS = "stays"  # the outcome of a hook that a locked release takes already, and that nothing has touched


class HunkReport(NamedTuple):
    """What became of a hunk: its hook, where it stands in the new release, the outcome, and what was found."""

    hook: str
    place: str
    outcome: str
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Placed:
    """A patch in the new release: what became of it, the files with their regions, and the hooks that it waits for."""

    relocated: RelocatedPatch
    parts: Mapping[str, Sequence[Part]]
    waits: Sequence[str]


def nearest_of(versions: Sequence[str], version: str) -> str:
    """Return which of some releases, in order, is next to another one: the latest that is not newer, or the first."""
    return [versions[0], *(each for each in versions if Version(each) <= Version(version))][-1]


class LockedReleases:
    """The files of the locked releases, each opened once when it is asked for, until the stack ends."""

    def __init__(self, lock: Lock, cache: Path, stack: ExitStack) -> None:
        self.lock, self.cache, self.stack = lock, cache, stack
        self._sources: dict[str, SourceTree] = {}
        self._hooked: dict[str, tuple[HookedTree, Sequence[Hook]]] = {}

    def nearest(self, hook: Hook, version: str) -> str:
        """Return the release next to another one, an older one first, that a hook has a variant for.

        That is the release itself, where it is locked and takes the hook.
        Raises PortError if there is none.
        """
        having = [locked for locked in self.lock if hook.variant(locked)]
        if not having:
            raise PortError(f"Hook {hook.name} is not due for any locked release.", hint="Take it out of the series.")
        return nearest_of(having, version)

    def open(self, version: str, hooks: Sequence[Hook]) -> HookedTree:
        """Return a release with hooks applied, until it is asked for with more of them."""
        if version not in self._sources:
            sources = self.stack.enter_context(open_source_tree(self.lock[version], self.cache))
            self._sources[version] = sources
        tree, applied = self._hooked.get(version, (HookedTree(self._sources[version]), ()))
        assert len(applied) <= len(hooks), "hooks are followed in order"
        patches = variants_of(hooks[len(applied) :], version)
        tree.touched.update(apply_series(patches, tree.read, f"sglang {version}"))
        self._hooked[version] = tree, hooks
        return tree


class Follower:
    """Follows hooks, in order, into the new release; it writes nothing but notes what is to be done.

    Parameters: `new`, the release, to which the hooks are applied; `queue`, which notes the variants that it takes;
    `answers`, None if there is no worktree yet; `state`, what is known from the last round; `patches`, the folder that
    these are for.
    `reports` is what became of each hunk; `commits` the hooks that are applied, those that are open too; `open` and
    `waiting` those that are not settled; `followed` those that hold; `kept` what is settled of those that wait;
    `placeless` the hunks without a place in the worktree, by hook.
    """

    def __init__(
        self,
        new: HookedTree,
        locked: LockedReleases,
        queue: PatchQueue,
        answers: Answers | None,
        state: PortState,
        patches: Path,
    ) -> None:
        self.new, self.locked, self.queue, self.answers, self.patches = new, locked, queue, answers, patches
        self.version = new.sources.version
        self.reports: list[HunkReport] = []
        self.commits: list[HookCommit] = []
        self.open: list[RelocatedPatch] = []
        self.waiting: dict[str, Sequence[str]] = {}
        self.followed: dict[str, Followed] = {}
        self.kept: dict[str, Kept] = {}
        self.placeless = dict(state.placeless)
        self._known, self._kept = state.followed, state.kept
        self._parts: dict[str, Sequence[Part]] = {}  # of files with regions
        self._waiting_scopes: dict[tuple[str, str], str] = {}  # by file and function, the first hook there that waits
        self._faults: list[PortError] = []

    def drop(self, hook: Hook) -> None:
        """Let the release take no variant of a hook."""
        self.queue.drop(hook.name, self.version)
        self.reports.append(HunkReport(hook.name, "", "dropped", f"not due at {self.version}"))

    def consider(self, hook: Hook, before: Sequence[Hook], not_due: NotDue) -> None:
        """Follow a hook that is not due if a person asks for it: a question where it fits and is taken nearby."""
        if hook.name in not_due.taken:
            self.follow(hook, before)
            return
        taking = [locked for locked in self.locked.lock if hook.variant(locked)]
        fits, found = self._try(hook, before) if taking else (False, "no locked release takes it")
        near = fits and is_near(self.version, taking, self.locked.lock)
        if near and not_due.takes(hook.name, found):
            self.follow(hook, before)
            return
        self.queue.drop(hook.name, self.version)
        self.reports.append(HunkReport(hook.name, "", "not due", found))

    def _try(self, hook: Hook, before: Sequence[Hook]) -> tuple[bool, str]:
        """Tell whether a hook fits exactly, and what was found, in words; note nothing."""
        nearest, patch = self._variant(hook)
        relocated = relocate(patch, self.locked.open(nearest, before), self.new)
        if relocated.settled:
            return True, f"fits exactly, as it does {nearest}"
        amiss = next(placement for placement in relocated.placements if not placement.settled)
        return False, f"does not fit: {amiss.outcome}"

    def _variant(self, hook: Hook) -> tuple[str, Patch]:
        """Return the release that a hook is followed from, and its variant there."""
        nearest = self.locked.nearest(hook, self.version)
        patch = hook.variant(nearest)
        assert patch is not None
        return nearest, patch

    def follow(self, hook: Hook, before: Sequence[Hook]) -> None:
        """Follow one hook; `before` are those before it."""
        nearest, patch = self._variant(hook)
        try:
            answer = self.answers.find(hook.name) if self.answers else None
        except PortError as error:
            self._faults.append(error)
            return
        if answer is not None:
            self._follow_answer(hook, patch, nearest, before, answer)
        elif nearest == self.version and self._alike(patch, self.locked.open(nearest, before)):
            rows = [HunkReport(hook.name, "", STAYS, f"sglang {self.version} takes it already")]
            self._take(hook, patch, nearest, rows)
        elif kept := self._kept.get(hook.name):
            was, now = ({name: pair[n] for name, pair in kept.items()} for n in (0, 1))
            self._follow_again(hook, patch, nearest, was, now, _renames(patch))
        elif rows := self._known_rows(hook, patch):
            self._take(hook, patch, nearest, rows)
        else:
            self._search(hook, patch, nearest, self.locked.open(nearest, before))

    def finish(self) -> None:
        """Raise PortError with each hook that is settled and does nothing."""
        if self._faults:
            hints = [error.hint for error in self._faults]
            raise PortError(*(problem for error in self._faults for problem in error.problems), hint=hints[0])

    def _follow_answer(self, hook: Hook, patch: Patch, nearest: str, before: Sequence[Hook], answer: Answer) -> None:
        """Let the release take what the worktree has of a hook; follow that where hooks before it are others now."""
        was, now = answer.whole if answer.whole and not answer.edited else (answer.before, answer.after)
        as_it_was = all(self.new.read(name) == data and name not in self._parts for name, data in was.items())
        if any(
            b"\n<<<<<<< " in (data or b"") for data in was.values()
        ):  # of a hook that is dropped: this one stood inside
            self._search(hook, patch, nearest, self.locked.open(nearest, before))
        elif was is answer.before and as_it_was and apply_if_fits(patch, was) == now:
            known = self._known.get(hook.name)
            self._take(hook, patch, nearest, [HunkReport(*row) for row in known.rows] if known else _exact(patch))
        elif was is answer.before and as_it_was:
            made = self._make_variant(hook, patch, was, now, answer.renamed)
            self._add(made, now, self._settled(hook, made))
        else:
            self._follow_again(hook, patch, nearest, was, now, answer.renamed)

    def _follow_again(
        self, hook: Hook, patch: Patch, nearest: str, was: Files, now: Files, renamed: Mapping[str, str]
    ) -> None:
        """Follow what a person has settled, from the files that it was settled in to what these are now."""
        old = HookedTree(self.new.sources, dict(was))
        if apply_if_fits(patch, was) == now:
            self._search(hook, patch, nearest, old)
        else:
            made = self._make_variant(hook, patch, was, now, renamed)
            self._search(hook, made, "", old, {name: (was[name], now[name]) for name in now})

    def _search(self, hook: Hook, patch: Patch, nearest: str, old: HookedTree, answered: Kept | None = None) -> None:
        """Look for the place of a patch.

        Parameters: `nearest`, the release that takes it, "" if none does yet; `old`, what it applies to; `answered`,
        the files before and after it if a person has settled it, which is kept while it waits.
        """
        placed = self._place(patch, old)
        rows = [
            HunkReport(hook.name, f"{p.file}:{p.line}" if p.line else p.file, p.outcome, p.note)
            for p in placed.relocated.placements
        ]
        settled = placed.relocated.settled
        scopes = [(p.file, p.scope) for p in placed.relocated.placements]
        waits = list(placed.waits)
        if not settled:
            waits += [self._waiting_scopes[scope] for scope in scopes if scope in self._waiting_scopes]
        if waits:
            if answered:
                self.kept[hook.name] = answered
            self.waiting[hook.name] = list(dict.fromkeys(waits))
            self._waiting_scopes = dict.fromkeys(scopes, hook.name) | self._waiting_scopes
            self.reports.append(HunkReport(hook.name, "", "waits", f"for {', '.join(self.waiting[hook.name])}"))
            return
        if settled and not any(name in self._parts for name in placed.relocated.files):
            if nearest:
                self._take(hook, patch, nearest, rows)
            else:
                before = {name: self.new.read(name) for name in placed.relocated.files}
                made = self._make_variant(hook, patch, before, placed.relocated.files, _renames(patch))
                self._add(made, placed.relocated.files, self._settled(hook, made))
            return
        if not settled:
            self.open.append(placed.relocated)
            nowhere = [p.where for p in placed.relocated.placements if p.outcome == "target gone"]
            if len(nowhere) < len(rows):  # or else an answer without a change is an error anyway
                self.placeless[hook.name] = nowhere
        elif nearest:
            self.followed[hook.name] = Followed(diff=_hash(patch.diff.encode()), files="", rows=rows)
        self.reports += rows if nearest or not settled else self._settled(hook, patch)
        self._commit(placed)

    def _place(self, patch: Patch, old: HookedTree) -> _Placed:
        """Place a patch among what is open: as if that were settled as it is shown, or as its hooks would have it."""
        found: list[_Placed] = []
        own = {name: self._parts[name] for name in patch.names if name in self._parts}
        views: Sequence[Side] = ("shown", "theirs")
        for side in views:
            flat = {
                name: with_mode(join_lines(flatten(parts, side)), executable=self._executable(name))
                for name, parts in own.items()
            }
            if found and all(self.new.read(name) == data for name, data in flat.items()):
                break
            relocated = relocate(patch, old, HookedTree(self.new.sources, {**self.new.touched, **flat}))
            parts, waits = dict(relocated.parts), list[str]()
            for name in parts.keys() & self._parts.keys():
                parts[name], hooks = put_back(self._parts[name], side if name in own else "shown", parts[name])
                waits += sorted(hooks)
            found.append(_Placed(relocated=relocated, parts=parts, waits=waits))
            if relocated.settled and not waits:
                break
        return min(found, key=lambda placed: (bool(placed.waits), not placed.relocated.settled))

    def _alike(self, patch: Patch, old: HookedTree) -> bool:
        """Tell whether the files that a patch changes are what they are in a release, and nothing in them is open."""
        return all(name not in self._parts and old.read(name) == self.new.read(name) for name in patch.names)

    def _known_rows(self, hook: Hook, patch: Patch) -> list[HunkReport]:
        """Return what was found of a hook in the last round, if its files are now as they were then."""
        known = self._known.get(hook.name)
        if known is None or any(name in self._parts for name in patch.names):
            return []
        same = known.diff == _hash(patch.diff.encode()) and known.files == self._hash_files(patch)
        return [HunkReport(*row) for row in known.rows] if same else []

    def _hash_files(self, patch: Patch) -> str:
        return _hash(*(self.new.read(name) or b"" for name in patch.names))

    def _take(self, hook: Hook, patch: Patch, nearest: str, rows: Sequence[HunkReport]) -> None:
        """Let the release take the variant of its neighbour, which applies exactly."""
        self.followed[hook.name] = Followed(diff=_hash(patch.diff.encode()), files=self._hash_files(patch), rows=rows)
        files = apply_series([patch], self.new.read, f"sglang {self.version}")
        compile_all({name: data for name, data in files.items() if data is not None})
        self.queue.take(hook.name, self.version, like=nearest)
        self._hold(patch, files, rows)

    def _add(self, made: Patch, files: Files, rows: Sequence[HunkReport]) -> None:
        """Let the release take a variant of its own, and see that it has the effect that it is to have."""
        folder = self.answers.tree.folder if self.answers else ""
        if faults := lint([Hook(name=made.hook, due=made.applies, variants=(made,))], [self.version]):
            raise PatchError(*faults, hint=f"That is the diff of what is in {folder}: mend it there.")
        if apply_series([made], self.new.read, f"sglang {self.version}") != files:
            raise PortError(f"Hook {made.hook}: its diff does not make what {folder} has.", hint=REPORT)
        self._hold(made, files, rows)

    def _settled(self, hook: Hook, made: Patch) -> list[HunkReport]:
        """Return what the table says of a hook that a person has settled."""
        rows = [
            HunkReport(hook.name, target_of(file), "settled", f"{_amount(file)} in the worktree") for file in made.files
        ]
        gone = "it had no place in the worktree: see that what it did is there, or not needed"
        return rows + [HunkReport(hook.name, where, "left out", gone) for where in self.placeless.get(hook.name, ())]

    def _hold(self, patch: Patch, files: Files, rows: Sequence[HunkReport]) -> None:
        self.reports += rows
        self.new.touched.update(files)
        self.commits.append(HookCommit(patch=patch, files=files))

    def _make_variant(self, hook: Hook, patch: Patch, before: Files, after: Files, renamed: Mapping[str, str]) -> Patch:
        """Return a variant of a hook for the release alone, which the queue has then."""
        diff = make_diff(before, after, renamed)
        self.queue.add_variant(hook.name, [self.version], patch.header, diff)
        return self.queue.variant(hook.name, self.version, self.patches)

    def _commit(self, placed: _Placed) -> None:
        """Note the commit of a hook whose files have regions, its own or those of hooks before it."""
        marked: dict[str, bytes | None] = {}
        for name, data in placed.relocated.files.items():
            marked[name] = self.new.touched[name] = data
            lines = placed.parts.get(name, self._parts.get(name, ()) if data is not None else ())
            self._parts.pop(name, None)
            if data is not None and lines:
                mode = is_executable(data)
                marked[name] = with_mode(join_lines(marked_lines(lines, f"sglang {self.version}")), executable=mode)
                self.new.touched[name] = with_mode(join_lines(shown_lines(lines)), executable=mode)
                if any(isinstance(part, Region) for part in lines):
                    self._parts[name] = lines
        self.commits.append(HookCommit(patch=placed.relocated.patch, files=marked))

    def _executable(self, name: str) -> bool:
        return is_executable(self.new.read(name) or b"")


def show(reports: Sequence[HunkReport]) -> None:
    """Show what became of each hunk, and how many of them had each outcome; what stays is counted only."""
    rows = [report for report in reports if report.outcome != STAYS]
    if rows:
        console.grid(("hook", "place", "outcome", "what was found"), rows)
    if reports:
        console.line(f"in all: {count_outcomes(reports)}")


def count_outcomes(found: Sequence[HunkReport] | Sequence[Placement]) -> str:
    """Return how many hunks had each outcome, in words."""
    counts = Counter("offset" if one.outcome.startswith("offset ") else one.outcome for one in found)
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items())


def _exact(patch: Patch) -> list[HunkReport]:
    """Return what the table says of a hook whose variant makes what the worktree has."""
    return [HunkReport(patch.hook, target_of(file), "exact", "as it is in the worktree") for file in patch.files]


def _amount(file: PatchedFile) -> str:
    return "deleted" if deletes(file) else f"+{file.added}/-{file.removed}"


def _renames(patch: Patch) -> dict[str, str]:
    """Return the files that a patch gives another name, by the new one."""
    return {target_of(file): source_of(file) for file in patch.files if renames(file)}


def _hash(*data: bytes) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in data)).hexdigest()
