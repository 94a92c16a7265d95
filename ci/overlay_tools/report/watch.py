"""What became of the releases that were not locked: on a terminal, and as the text of a pull request or an issue."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from overlay_tools import console
from overlay_tools.proving.runner import describe
from overlay_tools.proving.watch import Seen
from overlay_tools.report.changes import plain, to_markdown
from overlay_tools.upstream.asked import AskedRelease

_MOST = 60_000  # characters: GitHub takes 65,536


def print_seen(seen: Seen, where: str) -> None:
    """Show what became of one release.

    Parameters: `where`, the file that has more, or an empty text.
    """
    style = {"branch": "green", "report": "yellow"}.get(seen.outcome, "")
    told = {"branch": f"carried and proven in the branch {seen.branch}", "report": "a person is needed"}
    console.line(f"sglang {seen.release}: {told.get(seen.outcome, f'{seen.outcome}.')}", style=style)
    for line in seen.why:
        console.line(f"  {line}")
    if where:
        console.line(f"  More: {where}")


def describe_seen(seen: Seen) -> str:
    """Return the text of the pull request of a branch, or of the issue of a report, in Markdown."""
    parts, words = [], AskedRelease(version=seen.release, index=seen.index).words()
    if seen.outcome == "report":
        parts += ["A person is needed:", "\n".join(f"- {plain(line)}" for line in seen.why)]
        if seen.failed:
            parts += ["What failed:", "\n".join(f"- {plain(line)}" for line in seen.failed)]
        first = f" This goes on from `{seen.base}`: check that out first." if seen.base else ""
        parts.append(f"`nox -s port -- {words}` carries the overlay to this release on a desk.{first}")
    elif seen.base:
        parts.append(f"This goes on from `{seen.base}`, and brings what that has too.")
    if seen.results:
        rows = [f"| {result.stage} | {plain(describe(result))} | {result.python} |" for result in seen.results]
        parts.append("\n".join(["| stage | what its tests said | Python |", "|---|---|---|", *rows]))
    elif seen.outcome == "branch":
        parts.append("No stage of the tests has run.")
    if seen.changes is not None:
        parts.append(to_markdown(seen.changes, f"{seen.changes.old} {words}").rstrip("\n"))
    text = "\n\n".join(parts) + "\n"
    return text if len(text) <= _MOST else text[:_MOST].rpartition("\n")[0] + "\n\nThe rest is cut off.\n"


def to_row(seen: Seen) -> dict[str, Any]:
    """Return what became of a release, for a program; its Markdown says what changed."""
    row = asdict(seen)
    del row["changes"]
    return row
