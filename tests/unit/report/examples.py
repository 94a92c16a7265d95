"""Statuses to show: all green, or with some cells that are not."""

from __future__ import annotations

from dataclasses import replace

from overlay_tools.report.model import Cell, State, Status, StatusTable

RELEASES = ("0.5.7", "0.5.10.post1", "0.5.23")
STAGES = ("static", "kernels", "decisions", "engine", "gpu & more")
HOSTILE = "skipped: <script>document.title='owned'</script><img src=x onerror=alert(1)> & \"quotes\" \udce9"
BAD = (
    ("0.5.7", "Hooks", "resolve", Cell(state=State.RED, word="fails", problems=["the lines are not there"])),
    ("0.5.10.post1", "Stages", "engine", Cell(state=State.OPEN, word="skipped for 1 reason", problems=[HOSTILE])),
    ("0.5.10.post1", "Stages", "gpu & more", Cell(state=State.RED, word="2 failed", notes=["3 passed"])),
    (
        "0.5.10.post1",
        "Contract and base mentions",
        "base mentions",
        Cell(state=State.RED, word="1 unclassified", problems=["a.py:3"]),
    ),
)


def status_of(bad: tuple[tuple[str, str, str, Cell], ...] = ()) -> Status:
    """Return a status that is green except for the cells of `bad`."""
    other = {(release, table, column): cell for release, table, column, cell in bad}

    def table(name: str, columns: tuple[str, ...], green: Cell) -> StatusTable:
        rows = {
            release: [
                other.get((release, name, column), replace(green, names=[f"{column} by name"])) for column in columns
            ]
            for release in RELEASES
        }
        return StatusTable(name=name, about=f"What of {name}?", columns=columns, rows=rows)

    hook = Cell(state=State.GREEN, word="offset +12", notes=["+2/-0", "line 107"])
    stage = Cell(state=State.GREEN, word="38 passed", notes=["12 s", "2026-11-23", "895de74+"])
    fits = Cell(state=State.GREEN, word="170 fit", notes=["3 waived"])
    tables = [
        table("Hooks", ("register", "resolve"), hook),
        table("Stages", STAGES, stage),
        table("Contract and base mentions", ("contract", "base mentions"), fits),
    ]
    return Status(commit="895de74d1234+", default="0.5.23", releases=RELEASES, tables=tables)
