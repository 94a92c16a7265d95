"""The lines of one file through a series of changes: which brought each and which took it away."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from overlay_tools.archive.mode import is_executable, with_mode
from overlay_tools.patches.line_diff import Change, find_changes
from overlay_tools.patches.model import join_lines, split_lines


@dataclass(kw_only=True, slots=True)
class WovenLine:
    """A line: its text, and the numbers of the changes that brought it (0: it was there) and took it away."""

    text: str
    born: int = 0
    died: int | None = None


# Says which change the lines removed by a part of an edit, one number each, and those added belong to.
Attribute = Callable[[Sequence[WovenLine], Change, Sequence[str]], tuple[Sequence[int], int]]


class Weave:
    """A file, from its content before any change; changes have numbers, in the order in which they apply."""

    def __init__(self, content: bytes | None) -> None:
        self._lines = [WovenLine(text=text) for text in split_lines(content or b"")]
        # What is so from each change on: whether the file is executable, or None for that it is not there.
        self._states = [(0, None if content is None else is_executable(content))]

    def visible(self, until: int | None = None, without: Collection[int] = ()) -> list[WovenLine]:
        """Return the lines as the changes up to one have left them, but for those that are left out."""

        def counts(number: int | None) -> bool:
            return number is not None and (until is None or number <= until) and number not in without

        return [line for line in self._lines if (not line.born or counts(line.born)) and not counts(line.died)]

    def content(self, until: int, without: Collection[int] = ()) -> bytes | None:
        """Return the file as `visible` has it, None if it is not there."""
        *_, state = (state for number, state in self._states if number <= until and number not in without)
        if state is None:
            return None
        return with_mode(join_lines(line.text for line in self.visible(until, without)), executable=state)

    def numbers(self) -> set[int]:
        """Return the numbers of the changes that have brought lines or taken some away."""
        lines = {number for line in self._lines for number in (line.born, line.died or 0)}
        return lines.union(number for number, _ in self._states) - {0}

    def differs(self, content: bytes | None) -> bool:
        """Tell whether content is there, or executable, where the file is not, or the other way round."""
        return self._states[-1][1] != (None if content is None else is_executable(content))

    def set_state(self, number: int, content: bytes | None) -> None:
        """Note that from a change on the file is executable, or is not, or is not there, as content is."""
        if self.differs(content):
            self._states.append((number, None if content is None else is_executable(content)))

    def edit(self, content: bytes, attribute: Attribute) -> None:
        """Make the file what it has become, each part of what has changed as `attribute` says."""
        old, new = self.visible(), split_lines(content)
        for change in reversed(find_changes([line.text for line in old], new)):
            added = new[change.new_start : change.new_end]
            died, born = attribute(old, change, added)
            for line, number in zip(old[change.start : change.end], died, strict=True):
                line.died = number
            at = 1 + self._index(old[change.end - 1]) if change.end else 0
            self._lines[at:at] = [WovenLine(text=text, born=born) for text in added]

    def _index(self, wanted: WovenLine) -> int:
        return next(n for n, line in enumerate(self._lines) if line is wanted)
