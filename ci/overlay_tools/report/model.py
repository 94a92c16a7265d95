"""The status of every release: tables of one cell for each release and column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from overlay_tools.report.hook_distance import HookDistance


class State(Enum):
    """How a cell stands, by the sign that is shown for it; the worse, the later."""

    NEUTRAL = "–"
    GREEN = "✓"
    OPEN = "○"
    RED = "✗"

    @property
    def ok(self) -> bool:
        """Say whether nothing needs to be done."""
        return self in (State.NEUTRAL, State.GREEN)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One thing about one release.

    `word`: the outcome; `notes`: figures beside it; `names`: what the figures count, one by one; `problems`: why the
    state is not ok.
    """

    state: State
    word: str
    notes: Sequence[str] = ()
    names: Sequence[str] = ()
    problems: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusTable:
    """A table of one cell for each release and column; `about` says what it shows."""

    name: str
    about: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Cell]]

    @property
    def ok(self) -> int:
        """Return how many releases need nothing done in this table."""
        return sum(all(cell.state.ok for cell in cells) for cells in self.rows.values())

    @property
    def worst(self) -> State:
        """Return the worst state in the table."""
        return _worst(cell.state for cells in self.rows.values() for cell in cells)


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """The status of a checkout at `commit`, which is empty outside git; its `default` release is marked.

    `hooks`: how far each is from upstream.
    """

    commit: str
    default: str
    releases: Sequence[str]
    tables: Sequence[StatusTable]
    hooks: Sequence[HookDistance] = ()

    def state(self, release: str) -> State:
        """Return the worst state of a release."""
        return _worst(cell.state for table in self.tables for cell in table.rows[release])

    @property
    def worst(self) -> State:
        """Return the worst state of any release."""
        return _worst(self.state(release) for release in self.releases)

    def todo(self, release: str) -> list[tuple[StatusTable, str, Cell]]:
        """Return the cells of a release that are not ok, each with its table and column."""
        return [
            (table, column, cell)
            for table in self.tables
            for column, cell in zip(table.columns, table.rows[release], strict=True)
            if not cell.state.ok
        ]

    @property
    def not_green(self) -> list[str]:
        """Return a line for each release that is not green, saying what is not."""
        return [
            f"{release}: {', '.join(f'{column} {cell.word}' for _, column, cell in todo)}"
            for release in self.releases
            if (todo := self.todo(release))
        ]

    @property
    def verdict(self) -> str:
        """Return the whole status in one line."""
        states = [self.state(release) for release in self.releases]
        words = [f"{states.count(State.GREEN)} of {len(states)} releases green"]
        for state in (State.RED, State.OPEN):
            if state in states:
                words.append(f"{states.count(state)} {state.name.lower()}")
        return ", ".join(words)


def _worst(states: Iterable[State]) -> State:
    return max([State.GREEN, *states], key=list(State).index)
