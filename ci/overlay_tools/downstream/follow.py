"""The hooks of the series followed into a release that is not locked yet, up to the first that a person must settle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from packaging.version import Version

from overlay_tools import console
from overlay_tools.downstream.answers import Answer, Answers
from overlay_tools.downstream.diff import make_diff
from overlay_tools.downstream.not_due import NotDue, is_near
from overlay_tools.downstream.queue import PatchQueue
from overlay_tools.errors import REPORT, PatchError, PortError
from overlay_tools.patches.apply import apply_series
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.lint import lint
from overlay_tools.patches.model import Hook, Patch, deletes, source_of, target_of
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
class AppliedHook:
    """A hook that holds in the new release: a variant, whose header is the hook's, and the files that it makes."""

    patch: Patch
    files: Mapping[str, bytes | None]


class LockedReleases:
    """The files of the locked releases, each opened once when it is asked for, until the stack ends."""

    def __init__(self, lock: Lock, cache: Path, stack: ExitStack) -> None:
        self.lock, self.cache, self.stack = lock, cache, stack
        self._sources: dict[str, SourceTree] = {}

    def nearest(self, hook: Hook, version: str) -> str:
        """Return the release next to another one, an older one first, that a hook has a variant for.

        That is the release itself, where it is locked and takes the hook.
        Raises PortError if there is none.
        """
        having = [locked for locked in self.lock if hook.variant(locked)]
        if not having:
            raise PortError(f"Hook {hook.name} is not due for any locked release.", hint="Take it out of the series.")
        older = [locked for locked in having if Version(locked) <= Version(version)]
        return older[-1] if older else having[0]

    def open(self, version: str, hooks: Sequence[Hook]) -> HookedTree:
        """Return a release with hooks applied."""
        if version not in self._sources:
            sources = self.stack.enter_context(open_source_tree(self.lock[version], self.cache))
            self._sources[version] = sources
        return HookedTree.apply(self._sources[version], hooks)


class Follower:
    """Follows hooks, in order, into the new release; it writes nothing but notes what is to be done.

    Parameters: `new`, the release, to which the hooks are applied; `queue`, which notes the variants that it takes;
    `patches`, the folder that these are for.
    `reports` is what became of each hunk, `open` the first hook that a person must settle, `applied` those before it.
    """

    def __init__(
        self, new: HookedTree, locked: LockedReleases, queue: PatchQueue, answers: Answers, patches: Path
    ) -> None:
        self.new, self.locked, self.queue, self.answers, self.patches = new, locked, queue, answers, patches
        self.version = new.sources.version
        self.reports: list[HunkReport] = []
        self.applied: list[AppliedHook] = []
        self.open: RelocatedPatch | None = None

    def drop(self, hook: Hook) -> None:
        """Let the release take no variant of a hook."""
        self.queue.drop(hook.name, self.version)
        self.reports.append(HunkReport(hook.name, "", "dropped", f"not due at {self.version}"))

    def consider(self, hook: Hook, before: Sequence[Hook], not_due: NotDue) -> None:
        """Follow a hook that is not due if a person asks for it: a question where it fits and is taken nearby."""
        taking = [locked for locked in self.locked.lock if hook.variant(locked)]
        fits, found = self._try(hook, before) if taking else (False, "no locked release takes it")
        near = fits and is_near(self.version, taking, self.locked.lock)
        if hook.name in not_due.taken or (near and not_due.takes(hook.name, found)):
            self.follow(hook, before)
            return
        self.queue.drop(hook.name, self.version)
        self.reports.append(HunkReport(hook.name, "", "not due", found))

    def _try(self, hook: Hook, before: Sequence[Hook]) -> tuple[bool, str]:
        """Tell whether a hook fits exactly, and what was found, in words; note nothing."""
        nearest = self.locked.nearest(hook, self.version)
        patch = hook.variant(nearest)
        assert patch is not None
        relocated = relocate(patch, self.locked.open(nearest, before), self.new)
        if relocated.settled:
            return True, f"fits exactly, as it does {nearest}"
        amiss = next(placement for placement in relocated.placements if not placement.settled)
        return False, f"does not fit: {amiss.outcome}"

    def follow(self, hook: Hook, before: Sequence[Hook]) -> None:
        """Follow one hook; `before` are those before it."""
        nearest = self.locked.nearest(hook, self.version)
        patch = hook.variant(nearest)
        assert patch is not None
        old = self.locked.open(nearest, before)
        if nearest == self.version and self.open is None and _alike(patch, old, self.new):
            self._stay(hook, patch)
            return
        relocated = relocate(patch, old, self.new)
        if relocated.settled:
            self._take(hook, patch, nearest, relocated)
        elif self.open is None and (answer := self.answers.find(hook.name)) is not None:
            self._take_answer(hook, patch, answer)
        else:
            self.open = self.open or relocated
            self._report(relocated)
            self.new.touched.update(relocated.files)

    def _stay(self, hook: Hook, patch: Patch) -> None:
        """Leave a locked release the variant that it has, in files that no other hook has changed."""
        self.reports.append(HunkReport(hook.name, "", STAYS, f"sglang {self.version} takes it already"))
        self._apply(patch, apply_series([patch], self.new.read, f"sglang {self.version}"))

    def _take(self, hook: Hook, patch: Patch, nearest: str, relocated: RelocatedPatch) -> None:
        """Let the release take the variant of its neighbour, which applies exactly."""
        files = apply_series([patch], self.new.read, f"sglang {self.version}")
        compile_all(files)
        self.queue.take(hook.name, self.version, like=nearest)
        self._report(relocated)
        self._apply(patch, files)

    def _take_answer(self, hook: Hook, patch: Patch, answer: Answer) -> None:
        """Make the variant of the release from what a person has settled, and see that it has this effect."""
        files = answer.files
        diff = make_diff({name: self.new.read(name) for name in files}, files, answer.renamed)
        self.queue.add_variant(hook.name, [self.version], patch.header, diff)
        made = self.queue.variant(hook.name, self.version, self.patches)
        folder = self.answers.tree.folder
        if faults := lint([Hook(name=hook.name, due=made.applies, variants=(made,))], [self.version]):
            raise PatchError(*faults, hint=f"That is the diff of what is in {folder}: mend it there.")
        if apply_series([made], self.new.read, f"sglang {self.version}") != files:
            raise PortError(f"Hook {hook.name}: its diff does not make what {folder} has.", hint=REPORT)
        for file in made.files:
            note = f"{'deleted' if deletes(file) else f'+{file.added}/-{file.removed}'} in the worktree"
            self.reports.append(HunkReport(hook.name, target_of(file), "settled", note))
        self._apply(patch, files)

    def _apply(self, patch: Patch, files: Mapping[str, bytes | None]) -> None:
        self.new.touched.update(files)
        if self.open is None:
            self.applied.append(AppliedHook(patch=patch, files=files))

    def _report(self, relocated: RelocatedPatch) -> None:
        for placement in relocated.placements:
            place = f"{placement.file}:{placement.line}" if placement.line else placement.file
            self.reports.append(HunkReport(relocated.patch.hook, place, placement.outcome, placement.note))


def _alike(patch: Patch, old: HookedTree, new: HookedTree) -> bool:
    """Tell whether the files that a patch changes are the same in two releases."""
    names = (name for file in patch.files for name in (source_of(file), target_of(file)))
    return all(old.read(name) == new.read(name) for name in names)


def show(reports: Sequence[HunkReport]) -> None:
    """Show what became of each hunk, and how many of them had each outcome; what stays is counted only."""
    rows = [report for report in reports if report.outcome != STAYS]
    if rows:
        console.grid(("hook", "place", "outcome", "what was found"), rows)
    outcomes = (report.outcome for report in reports)
    counts = Counter("offset" if outcome.startswith("offset ") else outcome for outcome in outcomes)
    console.line(
        "in all: " + (", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "no hook is due")
    )
