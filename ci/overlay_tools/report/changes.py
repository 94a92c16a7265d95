"""What is otherwise in one release than in another: on a terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from overlay_tools import console
from overlay_tools.downstream.changes import Changes
from overlay_tools.downstream.follow import count_outcomes

_MARKUP = re.compile(r"[\\*<>\[\]#@|~`]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_MOST = 40  # lines of a section in Markdown: GitHub takes 65,536 characters in all


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the report: a heading, a line for each thing, and what it says where there is nothing."""

    heading: str
    lines: Sequence[str]
    nothing: str


def sections(changes: Changes) -> list[Section]:
    """Return the report, part by part."""
    new = changes.new
    hunks = [" ".join(filter(None, [f"{h.hook}:", h.place, f"{h.outcome}:", h.note])) for h in changes.hunks]
    like = [item for item in changes.architectures if item.like]
    others = [item.name for item in changes.architectures if not item.like]
    return [
        Section(
            heading=f"Hooks{f' ({count_outcomes(changes.hunks)})' if changes.hunks else ''}",
            lines=hunks,
            nothing="No hook has changed.",
        ),
        Section(heading="Files that stay behind", lines=changes.left, nothing="All of overlay/ comes along."),
        Section(
            heading="The contract",
            lines=[f"{item.where}: {item.kind} {item.what}: {item.problem}" for item in changes.findings],
            nothing=f"All that the overlay needs of sglang {new} is there.",
        ),
        Section(
            heading="New places that name a base",
            lines=[
                f"{m.file}:{m.line}, in {m.scope}: {m.what}: {m.handled or m.waived or 'not classified'}"
                for m in changes.mentions
            ],
            nothing="There are none.",
        ),
        Section(
            heading="What changed for you",
            lines=[*_names(changes), *(f"{item.name} ({item.where}) is new; it {item.like}" for item in like)],
            nothing="Nothing that the overlay uses has changed.",
        ),
        Section(
            heading="What else upstream has",
            lines=[
                *(f"{name}: {now}, where sglang {changes.old} has {was}" for name, was, now in changes.pins),
                *([f"{len(others)} more new architectures: {', '.join(others)}"] if others else []),
            ],
            nothing="The same requirements and no other new architectures.",
        ),
    ]


def _names(changes: Changes) -> Iterator[str]:
    for change in changes.names:
        first, *others = change.places
        more = f" and {len(others)} more places" if len(others) > 1 else f" and {others[0]}" if others else ""
        must = "" if change.fits else " (this no longer fits)"
        where = f" ({change.upstream})" if change.upstream else ""
        yield f"{change.name.replace(':', '.')}{where}: {change.what}{must}: used in {first}{more}"


def verdict(changes: Changes) -> str:
    """Return the whole in one line."""
    if not changes.open:
        return f"The overlay fits sglang {changes.new}."
    without = f", {', '.join(changes.without)} left aside" if changes.without else ""
    things = "thing is" if changes.open == 1 else "things are"
    return f"{changes.open} {things} for a person to settle before the overlay fits sglang {changes.new}{without}."


def print_changes(changes: Changes) -> None:
    """Show the report on the terminal."""
    for section in sections(changes):
        console.line(section.heading, style="bold")
        for line in section.lines or [section.nothing]:
            console.line(f"  {line}")
    console.line(verdict(changes), style="yellow" if changes.open else "green")


def to_markdown(changes: Changes, words: str) -> str:
    """Return the report as Markdown, for a pull request or an issue.

    Parameters: `words`, the arguments with which `changes` shows all of it.
    """
    parts = [verdict(changes)]
    for section in sections(changes):
        lines = [f"- {plain(line)}" for line in section.lines[:_MOST]] or [section.nothing]
        if len(section.lines) > _MOST:
            lines.append(f"- {len(section.lines) - _MOST} more: `nox -s changes -- {words}`")
        parts.append("\n".join([f"## {section.heading}", "", *lines]))
    return "\n\n".join(parts) + "\n"


def plain(line: str) -> str:
    """Return a line in which nothing is Markdown but code between backticks: upstream's code may hold any character."""
    parts = re.split(r"(`[^`]+`)", line)
    return "".join(part if number % 2 else _MARKUP.sub(r"\\\g<0>", part) for number, part in enumerate(parts))


def to_json(changes: Changes) -> str:
    """Return the report as JSON."""
    hunks = [hunk._asdict() for hunk in changes.hunks]
    return json.dumps({**asdict(changes), "hunks": hunks, "open": changes.open}, indent=1) + "\n"
