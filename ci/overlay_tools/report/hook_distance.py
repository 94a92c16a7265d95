"""How far each hook is from upstream: since when it is kept, which release it was made on, what would end it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from overlay_tools.errors import ToolError
from overlay_tools.patches.model import Hook
from overlay_tools.subprocesses import git

_NO_LONGER_LOCKED = re.compile(r"(\d[\w.+]*) is no longer locked")


@dataclass(frozen=True, kw_only=True, slots=True)
class HookDistance:
    """One hook.

    `first` and `last`, the locked releases that take it; `made_on`, the release that its newest variant was made on;
    `behind`, how many locked releases that one is before `last`; `variants`, how many there are; `since`, the day of
    its first commit, None where git does not tell; `days` since then; `forwarded` and `remove_when`, from its header;
    `stale`, why it can go now, or empty.
    """

    name: str
    first: str
    last: str
    made_on: str
    behind: int
    variants: int
    since: date | None
    days: int
    forwarded: str
    remove_when: str
    stale: str

    @property
    def cells(self) -> tuple[str, ...]:
        """Return what is shown of it, in the order of `HEADS`."""
        takes = self.first if self.first == self.last else f"{self.first} to {self.last}"
        behind = f", {self.behind} release{'s' * (self.behind > 1)} behind {self.last}" if self.behind else ""
        made = f"{self.made_on}{behind}"
        age = f"{self.days} day{'s' * (self.days != 1)}" if self.since else "not known"
        return self.name, takes or "none", made, str(self.variants), age, self.forwarded, self.stale or self.remove_when


HOOKS = "How far hooks are from upstream"
HEADS = ("hook", "taken by", "newest variant made on", "variants", "age", "forwarded", "goes when")


def measure_hooks(root: Path, hooks: Sequence[Hook], locked: Sequence[str], today: date) -> list[HookDistance]:
    """Return how far each hook is from upstream.

    Parameters: `root`, the checkout; `locked`, the releases of the lock, oldest first.
    """
    since = _first_commits(root)
    found = []
    for hook in hooks:
        takes = [v for v in locked if any(patch.applies.contains(v, prereleases=True) for patch in hook.variants)]
        last = takes[-1] if takes else ""
        newest = next(
            (patch for patch in hook.variants if last and patch.applies.contains(last, prereleases=True)), None
        )
        own = [v for v in takes if newest is not None and newest.applies.contains(v, prereleases=True)]
        header = (newest or hook.variants[-1]).header
        day = since.get(hook.name)
        found.append(
            HookDistance(
                name=hook.name,
                first=takes[0] if takes else "",
                last=last,
                made_on=own[0] if own else "",
                behind=len(own) - 1 if own else 0,
                variants=len(hook.variants),
                since=day,
                days=(today - day).days if day else 0,
                forwarded=header["Forwarded"],
                remove_when=header["Remove-When"],
                stale=_why_stale(header["Remove-When"], takes, locked),
            )
        )
    return found


def _why_stale(remove_when: str, takes: Sequence[str], locked: Sequence[str]) -> str:
    """Say why a hook can go now, or nothing."""
    if not takes:
        return "now: no locked release takes it"
    named = _NO_LONGER_LOCKED.search(remove_when)
    return f"now: {named[1]} is no longer locked" if named and named[1] not in locked else ""


def _first_commits(root: Path) -> Mapping[str, date]:
    """Return the day of the first commit of each folder in patches/, nothing where git has not all commits."""
    try:
        if git(["rev-parse", "--is-shallow-repository"], cwd=root).stdout.strip() != "false":
            return {}
    except ToolError:
        return {}
    words = ["log", "--diff-filter=A", "--no-renames", "--format=%x00%as", "--name-only", "--", "patches"]
    found: dict[str, date] = {}
    for commit in git(words, cwd=root).stdout.split("\0")[1:]:
        day, *names = commit.splitlines()
        for _, folder, *file in (name.split("/") for name in names if name):
            if file:  # the newest commit comes first, so the oldest stays
                found[folder] = date.fromisoformat(day)
    return found
