"""Foreign patches applied exactly to the release that they were made on: each a hook, and files of overlay/."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from packaging.specifiers import SpecifierSet
from unidiff import PatchSet

from overlay_tools.archive.mode import with_mode
from overlay_tools.downstream.committed_hooks import CommittedHook
from overlay_tools.downstream.diff import make_diff
from overlay_tools.downstream.foreign_patch import (
    FileChange,
    ForeignPatch,
    apply_as_stated,
    lacks_context,
    last_contents,
)
from overlay_tools.downstream.queue import PatchQueue
from overlay_tools.errors import REPORT, BuildError, PatchError
from overlay_tools.patches.apply import apply_series
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.lint import lint
from overlay_tools.patches.model import README, TO_BE_FILLED, Hook, Patch, variants_of
from overlay_tools.settings import Project
from overlay_tools.upstream.source_tree import SourceTree
from overlay_tools.wheels.overlay_files import compile_all, read_own

_UNKNOWN = {"Why": TO_BE_FILLED, "Forwarded": f"no: {TO_BE_FILLED}", "Remove-When": TO_BE_FILLED}
Read = Callable[[str], bytes | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExactAttempt:
    """What becomes of a patch.

    `name` and `header`: of the hook that it is, or would be; `hook`: the one that it makes, and its `variant`; `added`:
    files of overlay/ by path, None for one that goes; `notes`: what of it is left out; `faults`: why it cannot be
    brought in as it is; `there`: whether all of it is in patches/ and overlay/ already.
    """

    patch: ForeignPatch
    name: str
    header: Mapping[str, str]
    hook: CommittedHook | None = None
    variant: Patch | None = None
    added: Mapping[str, bytes | None] = field(default_factory=dict)
    notes: Sequence[str] = ()
    faults: Sequence[str] = ()
    there: bool = False

    @property
    def holds(self) -> bool:
        """Tell whether there is something of it to write."""
        return not self.faults and not self.there and (self.hook is not None or bool(self.added))


@dataclass(kw_only=True, slots=True)
class _Effect:
    """What a patch does: to upstream's files, to those of overlay/, and to files as the patches know them.

    `renamed`: the old name of each of upstream's that gets a new one, by that; `notes`: what of it is left out.
    """

    hooked: dict[str, bytes | None] = field(default_factory=dict)
    overlay: dict[str, bytes | None] = field(default_factory=dict)
    seen: dict[str, bytes | None] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class ExactImport:
    """Applies patches, one after the other, to a release with the series.

    Parameters: `hooks`, the series; `versions`, the locked releases; `patches`, all that are to be applied.
    `tree` is the release with what was brought in, `overlay` what overlay/ is to hold besides.
    """

    def __init__(
        self,
        project: Project,
        hooks: Sequence[Hook],
        versions: Sequence[str],
        base: SourceTree,
        patches: Sequence[ForeignPatch],
    ) -> None:
        self.project, self.versions, self.base = project, versions, base
        self.tree = HookedTree(base)
        self.overlay: dict[str, bytes | None] = {}
        self._names = {hook.name for hook in hooks} | {"series", README}
        self._seen: dict[str, bytes | None] = {}  # files as the patches know them: without the series
        self._series: list[tuple[Patch, HookedTree]] = []  # each hook with the files that it found
        for patch in variants_of(hooks, base.version):
            self._series.append((patch, HookedTree(base, dict(self.tree.touched))))
            self.tree.touched.update(apply_series([patch], self.tree.read, f"sglang {base.version}"))
        last = last_contents(patches)
        self._there = {  # new files that overlay/ has for this release
            name for name in last if self.on_disk(name) == last[name] and project.takes(base.version, name)
        }

    def bring_in(self, patch: ForeignPatch, held_up: Callable[[CommittedHook], str]) -> ExactAttempt:
        """Apply one patch and note what is to be written, or say why not.

        Parameters: `held_up` says what a hook needs that is not there, "" if nothing.
        """
        header = {**_UNKNOWN, **patch.header}
        notes = [f"{file.name}: {file.left_out}" for file in patch.files if file.left_out]
        wanted = [file for file in patch.files if not file.left_out]
        if not wanted:
            nothing = [] if patch.files else ["there is no diff in it"]
            return ExactAttempt(patch=patch, name=patch.name, header=header, notes=[*notes, *nothing])
        if (there := self._find_there(patch, wanted)) is not None:
            return ExactAttempt(patch=patch, name=there, header=header, notes=notes, there=True)
        name = self._free_name(patch.name)
        try:
            effect = self._apply(patch, wanted, self.tree)
            compile_all({**effect.hooked, **effect.overlay})
            hook = self._hook(name, header, effect) if effect.hooked else None
            variant = self._make_variant(patch, hook) if hook else None
        except (PatchError, BuildError) as error:
            return ExactAttempt(patch=patch, name=name, header=header, notes=notes, faults=error.problems)
        if hook is not None and (lacking := held_up(hook)):
            return ExactAttempt(patch=patch, name=name, header=header, notes=notes, faults=[lacking])
        self._take(effect)
        self.tree.touched.update(effect.hooked)
        if hook is not None:
            self._names.add(name)
        return ExactAttempt(
            patch=patch,
            name=name,
            header=header,
            hook=hook,
            variant=variant,
            added=effect.overlay,
            notes=[*notes, *effect.notes],
        )

    def reserve(self, attempt: ExactAttempt) -> None:
        """Let no other hook have the name of one that is to be settled."""
        self._names.add(attempt.name)

    def read(self, name: str) -> bytes | None:
        """Return a file of the release or of the overlay, as it is to be."""
        upstream = _is_upstream(name, self.tree) and name not in self.project.replaced(self.base.version)
        return self.tree.read(name) if upstream else self._read_overlay(name)

    def _take(self, effect: _Effect) -> None:
        self.overlay |= effect.overlay
        self._seen |= effect.seen

    def _find_there(self, patch: ForeignPatch, wanted: Sequence[FileChange]) -> str | None:
        """Return the name of the hook that a patch has become already, "" if it is new files alone; None if it has not.

        It has if it makes the same of what that hook found, and its new files are in overlay/.
        """
        if not any(_is_upstream(file.name, self.tree) for file in wanted):
            return "" if self._makes(patch, wanted, self.tree, {}) else None
        name = re.compile(rf"{re.escape(patch.name)}(?:-\d+)?")
        for variant, found in self._series:
            if name.fullmatch(variant.hook) or variant.header["Subject"] == patch.header["Subject"]:
                made = apply_series([variant], found.read, f"sglang {self.base.version}")
                if self._makes(patch, wanted, found, made):
                    return variant.hook
        return None

    def _makes(
        self, patch: ForeignPatch, wanted: Sequence[FileChange], tree: HookedTree, made: Mapping[str, bytes | None]
    ) -> bool:
        """Tell whether a patch makes these files of a release, and none for overlay/ that is not there."""
        try:
            effect = self._apply(patch, wanted, tree)
        except PatchError:
            return False
        if effect.hooked != made or not effect.overlay.keys() <= self._there:
            return False
        self._take(effect)
        return True

    def _apply(self, patch: ForeignPatch, changes: Sequence[FileChange], tree: HookedTree) -> _Effect:
        """Return what a patch does to a release.

        Raises PatchError if one of its changes does not apply.
        """
        effect = _Effect()
        for change in changes:
            self._apply_to_file(patch, change, tree, effect)
        return effect

    def _apply_to_file(self, patch: ForeignPatch, change: FileChange, tree: HookedTree, effect: _Effect) -> None:
        name, upstream = change.name, _is_upstream(change.name, tree) or change.name in effect.hooked
        if name in self.project.replaced(self.base.version):
            raise PatchError(f"{name}: overlay/ has a file of its own in its place.")
        if change.content is not None:
            self._add(name, change.content, effect)
            return
        done = effect.hooked if upstream else effect.overlay

        def read(name: str) -> bytes | None:
            return done[name] if name in done else tree.read(name) if upstream else self._read_overlay(name)

        known = {**self._seen, **effect.seen}
        seen = known[name] if name in known else self.base.read(name) if upstream else read(name)
        here = read(name)
        if not upstream and here is not None and (why := self.why_of_others(name)):
            raise PatchError(f"{why}.")
        if change.diff:
            made, stated = self._change_lines(patch, change, seen, read)
        elif seen is None or here is None:
            raise PatchError(f"{name}: sglang {self.base.version} has no such file.")
        elif change.deleted:
            if not change.expects(seen):
                raise PatchError(f"{name} is not as the patch found it, which deletes it.")
            done[name] = effect.seen[name] = None
            return
        else:
            made, stated = here, seen
        if change.executable is not None:
            made, stated = (with_mode(data, executable=change.executable) for data in (made, stated))
        if made == here and upstream and not change.target:
            raise PatchError(f"{name}: sglang {self.base.version} is as the patch makes it.")
        if change.target:
            others = self._read_overlay(change.target) if upstream else tree.read(change.target)
            if read(change.target) is not None or others is not None:
                raise PatchError(f"{name} is renamed to {change.target}, which is there already.")
            done[name] = effect.seen[name] = None
            effect.renamed |= {change.target: name} if upstream else {}
            name = change.target
        done[name], effect.seen[name] = made, stated

    def _change_lines(
        self, patch: ForeignPatch, change: FileChange, seen: bytes | None, read: Read
    ) -> tuple[bytes, bytes]:
        """Return what the lines of a patch make of a file, and of it as the patches know it, `seen`."""
        name = change.name
        (parsed,) = PatchSet.from_string(change.diff)
        if bare := next((hunk for hunk in parsed if lacks_context(hunk)), None):
            raise PatchError(
                f"{patch.path}:{change.line}: the hunk of line {bare.source_start} of {name} has no context, so that"
                " nothing says where it belongs; `git diff` without -U0 gives it some."
            )
        stated = None if seen is None else apply_as_stated(seen, parsed)
        if seen is None or stated is None:
            made = self._apply_diff(patch, change, change.diff, read)
            return made, made
        if read(name) == seen:
            return stated, stated
        return self._apply_diff(patch, change, make_diff({name: seen}, {name: stated}), read), stated

    def _apply_diff(self, patch: ForeignPatch, change: FileChange, diff: str, read: Read) -> bytes:
        """Return what a diff makes of a file, with the series applied."""
        foreign = Patch(
            hook=patch.name,
            path=patch.path,
            sha256="",
            header={},
            applies=SpecifierSet(),
            diff=diff,
            first_line=max(change.line - 3, 1),  # an error names the line of the @@, three lines further
            files=list(PatchSet.from_string(diff)),
        )
        made = apply_series([foreign], read, f"sglang {self.base.version}")[change.name]
        assert made is not None  # a deletion has no hunks
        return made

    def _add(self, name: str, content: bytes, effect: _Effect) -> None:
        if self.base.read(name) is not None:
            raise PatchError(f"{name} is a new file, and sglang {self.base.version} has one of this name.")
        here = self._read_overlay(name)
        if here is not None and here != content:
            raise PatchError(f"{name} is a new file, and overlay/{name} exists with another content.")
        if here is not None and (why := self.why_of_others(name)):
            raise PatchError(f"{why}.")
        effect.overlay[name] = content

    def why_of_others(self, name: str) -> str:
        """Say of a file that is in overlay/, and that the release does not take, what is to be done; "" of others."""
        if name in self.overlay or self.on_disk(name) is None or self.project.takes(self.base.version, name):
            return ""
        return f"{name} is in overlay/ for other releases: let sglang {self.base.version} take it too"

    def _read_overlay(self, name: str) -> bytes | None:
        """Return a file of overlay/ as it is to be: what the patches make from nothing is not there to begin with."""
        if name in self.overlay:
            return self.overlay[name]
        return None if name in self._there else self.on_disk(name)

    def on_disk(self, name: str) -> bytes | None:
        """Return a file of overlay/ as it is now, or None if there is none."""
        return read_own(self.project.root, name)

    def _hook(self, name: str, header: Mapping[str, str], effect: _Effect) -> CommittedHook:
        before = {path: self.tree.read(path) for path in effect.hooked}
        return CommittedHook(name=name, header=header, before=before, after=effect.hooked, renamed=effect.renamed)

    def _make_variant(self, patch: ForeignPatch, hook: CommittedHook) -> Patch:
        """Return the variant of a hook for the base.

        Raises PatchError if the series may not have it.
        """
        trial = PatchQueue((), self.versions)
        diff = make_diff(hook.before, hook.after, hook.renamed)
        trial.add_variant(hook.name, [self.base.version], hook.header, diff)
        made = trial.variant(hook.name, self.base.version, self.project.patches)
        if faults := lint([Hook(name=hook.name, due=made.applies, variants=(made,))], [self.base.version]):
            raise PatchError(*faults)
        if apply_series([made], self.tree.read, f"sglang {self.base.version}") != hook.after:
            raise PatchError(f"{patch.title}: its diff does not make what it should.", hint=REPORT)
        return made

    def _free_name(self, wanted: str) -> str:
        names = [wanted, *(f"{wanted}-{number}" for number in range(2, 1000))]
        return next(name for name in names if name not in self._names)


def _is_upstream(name: str, tree: HookedTree) -> bool:
    """Tell whether a file is upstream's, be it under a name that a hook has given it."""
    return tree.sources.read(name) is not None or name in tree.touched
