"""A hunk on its way from a release that it applies to into another one, and what becomes of it there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from unidiff import Hunk

from overlay_tools.errors import PatchError
from overlay_tools.patches.apply import find_hunk
from overlay_tools.patches.code_spans import find_names, find_spans, scopes_around, text_of_scope
from overlay_tools.patches.edited_file import Edit, EditedFile, EditedTree, Region
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.model import sides, split_lines
from overlay_tools.patches.three_way_merge import merge


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """What became of one hunk.

    `where`: the hunk, as patch file and line; `file`, `line` and `scope`: where it stands in the new release (the
    dotted name of the function or class, "" at a file's top level; line 0 without a place); `outcome`: exact, offset N,
    moved, upstream, half-upstream, conflict or target gone; `note`: what was found; `edit`: what it does to the file.
    """

    where: str
    file: str
    line: int
    scope: str
    outcome: str
    note: str
    edit: Edit | None

    @property
    def proposed(self) -> bool:
        """Tell whether there is a place to review."""
        return self.line > 0

    @property
    def settled(self) -> bool:
        """Tell whether the hunk applies exactly, in the function where it stood."""
        return self.outcome.split()[0] in ("exact", "offset")


@dataclass(frozen=True, kw_only=True, slots=True)
class MergedScope:
    """A function of the new release with a hunk merged into it.

    `edit`: what that does to its file; `line`: where the first change is, counted from 1, 0 if nothing changes;
    `clean`: nothing is in conflict.
    """

    edit: Edit
    line: int
    clean: bool


@dataclass(frozen=True, kw_only=True)  # without slots, for it keeps its answers
class MovingHunk:
    """One hunk, and the answers to what the strategies that look for its place ask.

    `where`: the hunk, as patch file and line; `name`: the file that it changes; `old`: the lines of that file in
    `old_release`, to which the hunk applies; `release`: the new one. That file and the new release have the hunks
    before this one in their places.
    """

    hunk: Hunk
    where: str
    name: str
    old: Sequence[str]
    old_release: HookedTree
    release: EditedTree

    @cached_property
    def before(self) -> Sequence[str]:
        """Return the lines that the hunk expects."""
        return sides(self.hunk)[0]

    @cached_property
    def after(self) -> Sequence[str]:
        """Return what the hunk makes of its lines."""
        return sides(self.hunk)[1]

    @cached_property
    def new(self) -> EditedFile | None:
        """Return the file of the same name in the new release, if there is one."""
        return self.release.file(self.name)

    @cached_property
    def scope(self) -> str:
        """Return the name of the function or class that the hunk changes, "" if it is at the file's top level."""
        return _changed_scope(self.hunk, self.old, self._old_place)

    @cached_property
    def patched(self) -> list[str]:
        """Return the lines of the old file with the hunk applied."""
        return [*self.old[: self._old_place], *self.after, *self.old[self._old_place + len(self.before) :]]

    @cached_property
    def _old_place(self) -> int:
        """Return where the hunk stands in the old file, which has the lines of the hunks before it: the nearest.

        Raises PatchError if it stands nowhere there.
        """
        places = find_hunk(self.old, self.hunk)
        if not places:
            version = self.old_release.sources.version
            raise PatchError(
                f"{self.where}: {self.name} of sglang {version}, for which this variant is, does not have these lines.",
                hint=f"Mend the variant first: `nox -s build -- {version}` tells all that does not apply.",
            )
        return min(places, key=lambda place: abs(place - self.hunk.target_start + 1))

    @cached_property
    def places(self) -> list[int]:
        """Return where its lines stand in its own file, each place by its first part, counted from 0."""
        return self.new.find(self.hunk) if self.new else []

    @cached_property
    def own_places(self) -> list[int]:
        """Return those of the places that are in the function where it stood."""
        return [place for place in self.places if self.new and self.scope_at(self.new, place) == self.scope]

    @cached_property
    def other_places(self) -> list[tuple[str, EditedFile, int]]:
        """Return where its lines stand in other files of the new release, and stood nowhere but in its own before.

        Where they stood beside its own in the old release, in that file or in a function of that name, is a twin.
        """
        if not any(line.strip() for line in self.before):
            return []
        found = [
            (name, file, place)
            for name in self._files_with_longest_line(self.release.names, self.release.read)
            if (file := self.release.file(name))
            for place in file.find(self.hunk)
        ]
        twins = self._twins if found else []
        files, scopes = {name for name, _ in twins}, {scope for _, scope in twins if scope}
        return [
            (name, file, place)
            for name, file, place in found
            if name not in files and self.scope_at(file, place) not in scopes
        ]

    @cached_property
    def _twins(self) -> list[tuple[str, str]]:
        """Return the files and functions where the old release has the hunk's lines too."""
        read = self.old_release.read
        return [
            (name, _changed_scope(self.hunk, lines, place))
            for name in self._files_with_longest_line(self.old_release.names, read)
            for lines in [split_lines(read(name) or b"")]
            for place in find_hunk(lines, self.hunk)
        ]

    def _files_with_longest_line(self, names: Iterable[str], read: Callable[[str], bytes | None]) -> Iterator[str]:
        """Yield the files but its own that hold the longest line that the hunk expects."""
        longest = max(self.before, key=lambda line: len(line.strip())).encode("utf-8", "surrogateescape")
        return (name for name in names if name != self.name and longest in (read(name) or b""))

    @cached_property
    def upstream_share(self) -> float:
        """Return which part of its change the new release has made itself, from 0 to 1.

        A line that the hunk adds counts as there if its function has it now and had it less often before; of a hunk
        that only takes lines away, a line counts as gone. Blank lines say nothing.
        """
        if self.new is None:
            return 0
        added = [line.value.strip() for line in self.hunk if line.is_added and line.value.strip()]
        removed = [line.value.strip() for line in self.hunk if line.is_removed and line.value.strip()]
        was = [line.strip() for line in text_of_scope(self.old, self.scope)]
        now = [line.strip() for line in text_of_scope(self.new.lines, self.scope)]
        if added:
            return sum(now.count(line) > was.count(line) for line in added) / len(added)
        return sum(now.count(line) < was.count(line) for line in removed) / max(1, len(removed)) if now else 0

    @cached_property
    def names_upstream(self) -> Sequence[str]:
        """Return the names that the hunk adds to its file and the new release has added there itself, sorted.

        Of a function's or class's names, none is there beside its own.
        """
        if self.new is None:
            return []
        old, patched, new = (find_names("\n".join(lines)) for lines in (self.old, self.patched, self.new.lines))
        both = (patched - old) & new
        return sorted(name for name in both if name.rpartition(".")[0] not in both)

    @cached_property
    def merged(self) -> MergedScope | None:
        """Return the function where it stood with the hunk merged into it, None if there is none of that name."""
        return self.merge_into(self.name, self.scope)

    def scope_at(self, file: EditedFile, place: int) -> str:
        """Return the name of the function or class that the hunk changes at a place of a file."""
        return _changed_scope(self.hunk, file.lines, file.line_number(place) - 1)

    def merge_into(self, name: str, scope: str) -> MergedScope | None:
        """Merge what the hunk does to its function into one of the new release, if there is one of that name."""
        file = self.release.file(name)
        target = file.parts_of_scope(scope) if file else None
        base, theirs = text_of_scope(self.old, self.scope), text_of_scope(self.patched, self.scope)
        if file is None or target is None or (self.scope and not theirs):
            return None
        merged = merge(file.parts[target.start : target.stop], base, theirs)
        edit = Edit(file=name, start=target.start, end=target.stop, parts=merged.parts)
        line = 0 if merged.unchanged is None else file.line_number(target.start) + merged.unchanged
        return MergedScope(edit=edit, line=line, clean=merged.clean)

    def settle(self, place: int) -> Edit:
        """Return the edit of its own file that applies the hunk at a place."""
        return Edit(file=self.name, start=place, end=place + len(self.before), parts=self.after)

    def propose(self, name: str, place: int) -> Edit:
        """Return the edit that applies the hunk at a place of a file, as a region to review."""
        ours, theirs = self.before, self.after
        if ours[-1] == theirs[-1] == "":  # what comes after the last line end of a file: it is not a line to show
            ours, theirs = ours[:-1], theirs[:-1]
        return Edit(file=name, start=place, end=place + len(ours), parts=[Region(ours=ours, theirs=theirs)])

    def placed(
        self, outcome: str, note: str, edit: Edit | None = None, *, line: int = 0, scope: str | None = None
    ) -> Placement:
        """Return what became of the hunk; in its own file and function unless something else is said."""
        return Placement(
            where=self.where,
            file=edit.file if edit else self.name,
            line=line,
            scope=self.scope if scope is None else scope,
            outcome=outcome,
            note=note,
            edit=edit,
        )


def _changed_scope(hunk: Hunk, lines: Sequence[str], at: int) -> str:
    """Return the name of the innermost scope around all that a hunk changes at a line, of those there before it."""
    before, after = sides(hunk)
    patched = [*lines[:at], *after, *lines[at + len(before) :]]
    kept = [line for line in hunk if line.is_context or line.is_added or line.is_removed]
    added = [n for n, line in enumerate(line for line in kept if not line.is_removed) if line.is_added]
    removed = [n for n, line in enumerate(line for line in kept if not line.is_added) if line.is_removed]
    changed = [(patched, at + n) for n in added] + [(lines, at + n) for n in removed]
    changed = [(text, n) for text, n in changed if text[n].strip()] or changed
    names = [scopes_around(text, n) for text, n in changed]
    common = {span.name for span in find_spans("\n".join(lines))}.intersection(*names)
    return next((name for name in reversed(names[0]) if name in common), "")
