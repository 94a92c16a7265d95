"""The status on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from overlay_tools.report.hook_distance import HEADS, HOOKS
from overlay_tools.report.model import Cell, State, Status

_STYLES = {State.NEUTRAL: "dim", State.GREEN: "green", State.OPEN: "yellow", State.RED: "bold red"}


def print_status(status: Status, console: Console) -> None:
    """Print the tables, then each problem with the releases that have it, then the verdict."""
    for table in status.tables:
        grid = Table(title=table.name, title_justify="left", title_style="bold", box=None, pad_edge=False)
        grid.add_column("release", no_wrap=True)
        for column in table.columns:
            grid.add_column(Text(column))
        for release, cells in table.rows.items():
            grid.add_row(release, *(_cell_text(cell) for cell in cells))
        console.print(grid, "")
    if status.hooks:
        _print_hooks(status, console)
    releases_with: dict[tuple[State, str], list[str]] = {}
    for release in status.releases:
        for _, column, cell in status.todo(release):
            for problem in cell.problems or [cell.word]:
                releases_with.setdefault((cell.state, f"{column}: {problem}"), []).append(release)
    for (state, problem), releases in releases_with.items():
        which = "all" if releases == list(status.releases) else ", ".join(releases)
        console.print(Text(f"{state.value} {problem} ({which})", style=_STYLES[state]), soft_wrap=True)
    console.print(Text(f"{status.worst.value} {status.verdict}", style=_STYLES[status.worst]))


def _print_hooks(status: Status, console: Console) -> None:
    grid = Table(title=HOOKS, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for head in HEADS:
        grid.add_column(head)
    for hook in status.hooks:
        style = _STYLES[State.OPEN] if hook.stale else ""
        grid.add_row(*(Text(cell, style=style) for cell in hook.cells))
    console.print(grid, "")


def _cell_text(cell: Cell) -> Text:
    return Text(", ".join([f"{cell.state.value} {cell.word}", *cell.notes]), style=_STYLES[cell.state])
