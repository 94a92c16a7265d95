"""Foreign patches that do not apply exactly, put where they seem to belong, with conflict markers for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from unidiff import Hunk, PatchSet

from overlay_tools.archive.mode import is_executable, with_mode
from overlay_tools.downstream.exact_import import ExactAttempt, ExactImport
from overlay_tools.downstream.foreign_patch import FileChange, ForeignPatch, lacks_context
from overlay_tools.patches.apply import find_block, find_hunk
from overlay_tools.patches.best_place import find_best_place
from overlay_tools.patches.edited_file import Edit, EditedFile, EditedTree, Region, hook_lines, upstream_lines
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.model import begins_file, ends_file, join_lines, sides, split_lines
from overlay_tools.patches.moving_hunk import MovingHunk
from overlay_tools.patches.strategies import place_hunk
from overlay_tools.upstream.source_tree import SourceTree

EXPECTED, MADE = "what the patch expects", "what the patch makes of it"  # the sides of a conflict beside the base's


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkedPatch:
    """A patch that a person is to settle.

    `files`: what it makes of files, with conflict markers, by path; `marked`: where each conflict begins, as file and
    line; `notes`: what became of hunks that leave nothing to settle, and what a person is to do to whole files, if
    `undone`.
    """

    attempt: ExactAttempt
    files: Mapping[str, bytes]
    undone: bool
    marked: Sequence[str]
    notes: Sequence[str]

    def noting(self, note: str) -> MarkedPatch:
        """Return the same with one more note."""
        return replace(self, notes=[*self.notes, note])


class KnownRelease:
    """The files of a release as patches made for it find them, patch by patch."""

    def __init__(self, sources: SourceTree) -> None:
        self.sources = sources
        self._files: dict[str, bytes | None] = {}

    def take(self, patch: ForeignPatch) -> Mapping[str, Sequence[str]] | None:
        """Apply a patch, and return the lines of the files that it found; None if it does not apply exactly."""
        found: dict[str, Sequence[str]] = {}
        made: dict[str, bytes | None] = {}
        for change in (change for change in patch.files if not change.left_out):
            if change.content is not None:
                made[change.name] = change.content
                continue
            content = self._files[change.name] if change.name in self._files else self.sources.read(change.name)
            lines = None if content is None or not change.expects(content) else split_lines(content)
            found.setdefault(change.name, lines or [])
            after = None if lines is None else _apply_exactly(lines, _hunks(change))
            if after is None:
                return None
            made[change.name] = None
            if not change.deleted:
                made[change.target or change.name] = join_lines(after)
        self._files |= made
        return found


class MarkedImport:
    """Puts patches, in order and on top of each other, on what the exact ones have made.

    A later patch finds what an earlier one makes: within its conflicts, that side of them.
    """

    def __init__(self, exact: ExactImport) -> None:
        self.exact = exact
        self._release = HookedTree(exact.base)
        self._tree = EditedTree(self._release)
        self._written: dict[str, bytes] = {}

    def put(self, attempt: ExactAttempt, known: Mapping[str, Sequence[str]] | None, sources: SourceTree) -> MarkedPatch:
        """Put one patch in its place.

        Parameters: `known`, the lines of the files that it was made on, of the release of which `sources` are, None if
        they are not known.
        """
        notes: list[str] = []
        to_do: list[str] = []
        new: dict[str, bytes] = {}
        for change in (change for change in attempt.patch.files if not change.left_out):
            file = self._open(change.name)
            if why := self.exact.why_of_others(change.name):
                to_do.append(f"{why}, and import this again")
                continue
            if change.content is not None:
                if self._written.get(change.name, self.exact.read(change.name)) is None:
                    new[change.name] = change.content
                _put_file(file, change)
                continue
            to_do += _to_do(change)
            old = (known or {}).get(change.name)
            shift = 0
            for hunk in _hunks(change):
                moving = None
                if old is not None:
                    moving = MovingHunk(
                        hunk=hunk,
                        where="",
                        name=change.name,
                        old=old,
                        old_release=HookedTree(sources),
                        release=self._tree,
                    )
                    old = moving.patched
                if not self._put_hunk(file, hunk, shift, moving):
                    notes.append(f"{change.name}: the hunk of line {hunk.source_start} is there already")
                shift += hunk.added - hunk.removed
        return self._finish(attempt, new, notes, to_do)

    def _put_hunk(self, file: EditedFile, hunk: Hunk, shift: int, moving: MovingHunk | None) -> bool:
        """Put a hunk where it fits, or else as a conflict where it seems to belong; return False if it is there.

        Parameters: `shift`, how far the hunks before it have moved its lines; `moving`, the same hunk on its way from a
        release that it fits, if there is one.
        """
        before, after = sides(hunk)
        view = hook_lines(file.parts)
        bare = lacks_context(hunk)
        places = [] if bare else find_hunk(view, hunk)
        place = _choose(places, hunk, shift)
        if place is not None:
            _replace(file, range(place, place + len(before)), before, after, settled=True)
            return True
        if not bare and not places and after and _stands(view, hunk, after):
            return False
        if moving is not None:
            placement = place_hunk(moving)
            if placement.edit is not None:
                self._tree.apply(placement.edit)
            if placement.edit is not None or placement.outcome == "upstream":
                return placement.edit is not None
        _put_conflict(file, hunk, places, _stated(hunk, shift))
        return True

    def _open(self, name: str) -> EditedFile:
        if name not in self._written:
            self._release.touched.setdefault(name, self.exact.read(name) or b"")
        file = self._tree.file(name)
        assert file is not None
        return file

    def _finish(
        self, attempt: ExactAttempt, new: Mapping[str, bytes], notes: Sequence[str], to_do: Sequence[str]
    ) -> MarkedPatch:
        """Return what has become of a patch; `new`: its files that nothing stood in the way of, as it has them."""
        ours = f"sglang {self.exact.base.version}, with the hooks"
        self._written |= new
        files, marked = dict(new), list[str]()
        for name, file in self._tree.changed().items():
            lines = list(file.with_markers(ours, EXPECTED, MADE))
            known = self._written.get(name, self.exact.read(name))
            data = with_mode(join_lines(lines), executable=is_executable(known or b""))
            if data != known:
                files[name] = self._written[name] = data
                marked += [f"{name}:{n}" for n, line in enumerate(lines, 1) if line == f"{'<' * 7} {ours}"]
        return MarkedPatch(attempt=attempt, files=files, undone=bool(to_do), marked=marked, notes=[*notes, *to_do])


def _stands(lines: Sequence[str], hunk: Hunk, after: Sequence[str]) -> bool:
    """Tell whether what a hunk makes stands among lines; what it makes of an end of a file, only there."""
    return any(
        (place == 0 or not begins_file(hunk)) and (place + len(after) == len(lines) or not ends_file(hunk))
        for place in find_block(lines, after)
    )


def _hunks(change: FileChange) -> Sequence[Hunk]:
    return [hunk for file in PatchSet.from_string(change.diff) for hunk in file]


def _to_do(change: FileChange) -> list[str]:
    """Return what a patch does to a whole file, which no marker can stand for, as what a person may do by hand."""
    said = []
    if change.deleted:
        said.append(f"{change.name}: the patch deletes it: `git rm` it in the worktree if it is to go")
    if change.target:
        said.append(f"{change.name}: the patch renames it: `git mv` it to {change.target} in the worktree")
    if change.executable is not None:
        sign = "+" if change.executable else "-"
        said.append(f"{change.name}: the patch changes its mode: `chmod {sign}x` it in the worktree")
    return said


def _apply_exactly(lines: Sequence[str], hunks: Sequence[Hunk]) -> list[str] | None:
    """Return the lines of a file with hunks applied, None if one does not stand there once or at its stated line."""
    lines, shift = list(lines), 0
    for hunk in hunks:
        before, after = sides(hunk)
        places = [] if lacks_context(hunk) else find_hunk(lines, hunk)
        place = _choose(places, hunk, shift)
        if place is None:
            return None
        lines[place : place + len(before)] = after
        shift += hunk.added - hunk.removed
    return lines


def _choose(places: Sequence[int], hunk: Hunk, shift: int) -> int | None:
    """Return the only one of some places, or else the one that a hunk states."""
    stated = _stated(hunk, shift)
    return places[0] if len(places) == 1 else stated if stated in places else None


def _stated(hunk: Hunk, shift: int) -> int:
    return int(hunk.source_start - (hunk.source_length > 0) + shift)


def _put_file(file: EditedFile, change: FileChange) -> None:
    """Put a new file in the place of one that is there, as a conflict."""
    ours, theirs = list(file.parts), split_lines(change.content or b"")
    if ours == [""]:
        parts: Sequence[str | Region] = theirs
    elif hook_lines(ours) == theirs:
        return
    else:
        if upstream_lines(ours)[-1:] == theirs[-1:] == [""]:
            ours, theirs = ours[:-1], theirs[:-1]
        parts = [Region(ours=upstream_lines(ours), theirs=theirs, conflict=True)]
    file.apply(Edit(file=change.name, start=0, end=len(ours), parts=parts))


def _put_conflict(file: EditedFile, hunk: Hunk, places: Sequence[int], stated: int) -> None:
    """Put a hunk as a conflict in the nearest of the places that it fits, or else where most of its lines stand."""
    before, after = sides(hunk)
    if before[-1:] == after[-1:] == [""]:  # what comes after the last line end of a file: it is not a line to show
        before, after = before[:-1], after[:-1]
    if places:
        nearest = min(places, key=lambda place: abs(place - stated))
        span = range(nearest, nearest + len(before))
    else:
        view = hook_lines(file.parts)
        line = 0 if begins_file(hunk) and not lacks_context(hunk) else stated
        span = find_best_place(view[:-1] if view[-1] == "" else view, before, line)
    _replace(file, span, before, after, settled=False)


def _replace(file: EditedFile, span: range, before: Sequence[str], after: Sequence[str], *, settled: bool) -> None:
    """Let lines of what patches have made so far become others; of a conflict, that side of it, all of it one then.

    Parameters: `span`, which lines, counted from 0.
    """
    sizes = (1 if isinstance(part, str) else len(part.theirs) for part in file.parts)
    starts = list(accumulate(sizes, initial=0))
    first = max(n for n, at in enumerate(starts) if at <= span.start and (n < len(file.parts) or not span))
    end = first
    while end < len(file.parts) and starts[end] < span.stop:
        end += 1
    parts = file.parts[first:end]
    if not span:
        parts, end = [], first
    view = hook_lines(parts)
    head, tail = view[: span.start - starts[first]], view[span.stop - starts[first] :]
    theirs = [*head, *after, *tail]
    if settled and not any(isinstance(part, Region) for part in parts):
        file.parts = [*file.parts[:first], *theirs, *file.parts[end:]]
        return
    ours, base = upstream_lines(parts), [*head, *before, *tail]
    plain = [isinstance(part, str) for part in parts]
    above, below = ([*side, False].index(False) for side in (plain, plain[::-1]))
    above, below = _same(above, below, ours, base, theirs)
    ours, base, theirs = (lines[above : len(lines) - below] for lines in (ours, base, theirs))
    region = Region(ours=ours, base=base, theirs=theirs, conflict=True)
    file.parts = [*file.parts[: first + above], region, *file.parts[end - below :]]


def _same(above: int, below: int, *sides: Sequence[str]) -> tuple[int, int]:
    """Return how many lines, at most `above` and `below`, all sides have in common at their beginnings and ends."""
    least = min(len(side) for side in sides)
    head = next((n for n in range(least) if n == above or len({side[n] for side in sides}) > 1), min(above, least))
    rest = least - head
    tail = next((n for n in range(rest) if n == below or len({side[-1 - n] for side in sides}) > 1), min(below, rest))
    return head, tail
