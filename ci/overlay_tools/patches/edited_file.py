"""A file of a release while hunks are placed in it: its lines, and among them the regions that a person reviews."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from unidiff import Hunk

from overlay_tools.patches.apply import find_hunk
from overlay_tools.patches.code_spans import lines_of_scope
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.model import split_lines

MARKER = re.compile(r"^(?:<{7}|>{7}|\|{7})(?: |$)|^={7}$")  # a line that `marked_lines` puts around a side of a region


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Region:
    """Lines that a person reviews.

    `ours`: the lines of the new release; `theirs`: what the hook makes of them; `base`: the lines of the old release
    that both have changed; `conflict`: whether what they become is open, so that upstream's lines stay until then;
    `hook` and `release`: what the hook and the old release are called, once the hook is followed.
    """

    ours: Sequence[str]
    theirs: Sequence[str]
    base: Sequence[str] = ()
    conflict: bool = False
    hook: str = ""
    release: str = ""

    @property
    def shown(self) -> Sequence[str]:
        """Return the lines that stand in the file where it is shown without conflict markers."""
        return self.ours if self.conflict else self.theirs


Part = str | Region  # of a file: a line, or a region of any number of lines


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """The parts `start` up to `end` of a file, counted from 0, and what takes their place."""

    file: str
    start: int
    end: int
    parts: Sequence[Part]


class EditedFile:
    """A file as a sequence of parts; a region is one of them, so that nothing is placed inside of it."""

    def __init__(self, content: bytes) -> None:
        self._upstream: Sequence[Part] = split_lines(content)
        self.parts: Sequence[Part] = self._upstream

    @property
    def changed(self) -> bool:
        """Tell whether an edit has changed a line, or has left a region to review."""
        return self.parts != self._upstream

    @property
    def lines(self) -> Sequence[str]:
        """Return the lines of the file, those of regions as they are shown."""
        return shown_lines(self.parts)

    def find(self, hunk: Hunk) -> list[int]:
        """Return where a hunk fits, each place as the index of its first part."""
        no_line = "\n"  # for a region, as no line is this
        return find_hunk([part if isinstance(part, str) else no_line for part in self.parts], hunk)

    def line_number(self, index: int) -> int:
        """Return the number of a part's first line, counted from 1."""
        return 1 + len(shown_lines(self.parts[:index]))

    def parts_of_scope(self, scope: str) -> range | None:
        """Return which parts a function or class has, or None if there is none of that name; "" is the whole file."""
        lines = lines_of_scope(self.lines, scope)
        if lines is None:
            return None
        starts = list(accumulate((1 if isinstance(part, str) else len(part.shown) for part in self.parts), initial=0))
        return range(bisect_right(starts, lines.start) - 1, bisect_right(starts, lines.stop - 1))

    def apply(self, edit: Edit) -> None:
        """Put an edit's parts in their place."""
        self.parts = [*self.parts[: edit.start], *edit.parts, *self.parts[edit.end :]]

    def with_markers(self, ours: str, base: str, theirs: str) -> Iterator[str]:
        """Yield the lines of the file with conflict markers around each region, each side under its name."""
        return marked_lines((sign(part, base, theirs) for part in self.parts), ours)


class EditedTree:
    """The files of a release while hunks are placed in them: each is read, and split into lines, when it is asked for.

    `names`: the paths of its Python files under sglang/.
    """

    def __init__(self, release: HookedTree) -> None:
        self.names = release.names
        self._release = release
        self._files: dict[str, EditedFile] = {}

    def read(self, name: str) -> bytes | None:
        """Return the content of a file as it was before any edit, or None if the release has no such file."""
        return self._release.read(name)

    def file(self, name: str) -> EditedFile | None:
        """Return a file, or None if the release has no such file."""
        if name not in self._files:
            content = self.read(name)
            if content is None:
                return None
            self._files[name] = EditedFile(content)
        return self._files[name]

    def apply(self, edit: Edit) -> None:
        """Change a file that the release has."""
        self._files[edit.file].apply(edit)

    def changed(self) -> dict[str, EditedFile]:
        """Return the files that edits have changed, by path."""
        return {name: file for name, file in self._files.items() if file.changed}


def sign(part: Part, release: str, hook: str) -> Part:
    """Return a part; a region that has no name yet with those of a hook and of the release that it comes from."""
    return replace(part, hook=hook, release=release) if isinstance(part, Region) and not part.hook else part


def marked_lines(parts: Iterable[Part], ours: str) -> Iterator[str]:
    """Yield the lines of parts, with conflict markers around each region; `ours` is what the new release is called."""
    for part in parts:
        if isinstance(part, str):
            yield part
            continue
        yield f"{'<' * 7} {ours}"
        yield from part.ours
        if part.base:
            yield f"{'|' * 7} {part.release}"
            yield from part.base
        yield "=" * 7
        yield from part.theirs
        yield f"{'>' * 7} {part.hook}"


def shown_lines(parts: Iterable[Part]) -> list[str]:
    """Return the lines of parts, of each region those that are shown."""
    return [line for part in parts for line in ([part] if isinstance(part, str) else part.shown)]


def upstream_lines(parts: Iterable[Part]) -> list[str]:
    """Return the lines of parts, of each region upstream's."""
    return [line for part in parts for line in ([part] if isinstance(part, str) else part.ours)]


def hook_lines(parts: Iterable[Part]) -> list[str]:
    """Return the lines of parts, of each region the hook's."""
    return [line for part in parts for line in ([part] if isinstance(part, str) else part.theirs)]
