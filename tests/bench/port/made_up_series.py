"""A made-up series of hooks, of which it is known what each file must be in each of some releases.

Each hook adds a line between two statements of upstream's, which are followed from release to release, diff by diff.
Some are chained on another: they take a name that it brings, or change the line that it added.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from overlay_tools.patches.code_spans import scope_of
from overlay_tools.patches.model import split_lines
from overlay_tools.upstream.source_tree import SourceTree, module_name

from bench.port.insertions import NEAR, Insertion, choose
from bench.port.release_repository import ReleaseRepository

LOGGER = "logger = logging.getLogger(__name__)"  # the last line of many a file's head
FILES = 300  # to look for quiet places in
MAIL = """\
From: Ours <ours@localhost>
Date: Sat, 1 Aug 2026 00:00:00 +0000
Subject: [PATCH] {name}

It is of use to us.

Forwarded: no: made up
Remove-When: never
---
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeUpHook:
    """A hook that adds `line` to `file`, or in the place of the line that the hook `changes` added.

    `after`: after which line of the file, counted from 1, it goes in each release.
    """

    name: str
    file: str
    line: str
    after: Sequence[int]
    changes: str = ""


@dataclass(kw_only=True, slots=True)
class MadeUpSeries:
    """Hooks in order, for some releases, oldest first."""

    sources: Sequence[SourceTree]
    hooks: list[MadeUpHook]

    @property
    def files(self) -> list[str]:
        """Return the files that the hooks change."""
        return sorted({hook.file for hook in self.hooks})

    def content(
        self, file: str, release: int, until: int | None = None, without: Collection[str] = frozenset()
    ) -> bytes:
        """Return what a file must be in a release, by its number, with so many of the hooks, but for some of them."""
        lines = (self.sources[release].read(file) or b"").decode("utf-8").split("\n")
        added: dict[int, dict[str, str]] = {}
        for hook in self.hooks[:until]:
            if hook.file == file and hook.name not in without:
                added.setdefault(hook.after[release], {})[hook.changes or hook.name] = hook.line
        whole = [text for n, line in enumerate(["", *lines]) for text in [line, *added.get(n, {}).values()]]
        return "\n".join(whole[1:]).encode()

    def mail(self, number: int) -> str:
        """Return a hook as `git format-patch` would write it, made in a fork's checkout of the oldest release."""
        hook = self.hooks[number]
        before, after = (self.content(hook.file, 0, until).decode().splitlines(True) for until in (number, number + 1))
        path = f"python/{hook.file}"
        diff = "".join(difflib.unified_diff(before, after, f"a/{path}", f"b/{path}"))
        return MAIL.format(name=hook.name) + f"diff --git a/{path} b/{path}\n{diff}"

    def change(self, count: int, seed: int) -> list[MadeUpHook]:
        """Let some of the hooks on which none is chained add another line, and return them."""
        chained = {hook.changes for hook in self.hooks} | {hook.name for hook in self.hooks if hook.changes}
        free = [n for n, hook in enumerate(self.hooks) if hook.name not in chained and " = " in hook.line]
        chosen = sorted(random.Random(seed).sample(free, count))
        for n in chosen:
            self.hooks[n] = dataclasses.replace(self.hooks[n], line=f"{self.hooks[n].line}  # changed")
        return [self.hooks[n] for n in chosen]


def make_up(
    repository: ReleaseRepository, left_alone: Collection[str], count: int, chained: int, seed: int
) -> MadeUpSeries:
    """Make up a series: half of it at places that upstream changes, the last hooks of it chained on others.

    Parameters: `left_alone`, files that no hook changes.
    """
    draw, old = random.Random(seed), repository.sources[0]
    changed = {name: lines for name, lines in repository.changed_lines().items() if name not in left_alone}
    heads = draw.sample(sorted(_heads(repository.sources, left_alone).items()), chained // 2)
    places = count - chained  # in functions: of as many hooks as these, and of those that take a head's name
    near = choose(old, changed, 8 * places, seed)
    far = choose(old, _unchanged_lines(old, changed, left_alone, draw), 4 * places, seed)
    draw.shuffle(near)
    draw.shuffle(far)
    found = [
        *itertools.islice(_survivors(repository, near), places - places // 2),
        *itertools.islice(_survivors(repository, far), places // 2),
    ]
    draw.shuffle(found)
    users, own = found[: len(heads)], found[len(heads) :]
    hooks = [_hook(n, file, "MADE_UP_{0:02} = {0}", after) for n, (file, after) in enumerate(heads)]
    hooks += [
        _hook(n, i.file, f"{_indent(i)}made_up_{{0:02}} = {{0}}", at) for n, (i, at) in enumerate(own, len(hooks))
    ]
    for n, (item, after) in enumerate(users):
        taken = f"from {module_name(heads[n][0])} import MADE_UP_{n:02} as made_up_{{0:02}}"
        hooks.append(_hook(len(hooks), item.file, f"{_indent(item)}{taken}", after))
    for hook in hooks[len(heads) : chained]:
        line = f"{hook.line}  # as {{0:02}} wants it"
        hooks.append(dataclasses.replace(_hook(len(hooks), hook.file, line, hook.after), changes=hook.name))
    return MadeUpSeries(sources=repository.sources, hooks=hooks)


def _hook(number: int, file: str, line: str, after: Sequence[int]) -> MadeUpHook:
    return MadeUpHook(name=f"made-up-{number:02}", file=file, line=line.format(number), after=after)


def _indent(insertion: Insertion) -> str:
    return insertion.line[: len(insertion.line) - len(insertion.line.lstrip())]


def _heads(sources: Sequence[SourceTree], left_alone: Collection[str]) -> dict[str, list[int]]:
    """Return after which line a module's logger is made in each release, by file, where it is made once in each."""
    found = {}
    for name in sources[0].names:
        texts = [(source.read(name) or b"").decode("utf-8").split("\n") for source in sources]
        if "/srt/" in name and name not in left_alone and all(text.count(LOGGER) == 1 for text in texts):
            found[name] = [text.index(LOGGER) + 1 for text in texts]
    return found


def _unchanged_lines(
    old: SourceTree, changed: Mapping[str, Iterable[int]], left_alone: Collection[str], draw: random.Random
) -> dict[str, set[int]]:
    """Return the lines of some files that no release changes, nor any near them, by file."""
    found = {}
    names = [name for name in old.names if "/srt/" in name and name not in left_alone]
    for name in draw.sample(names, min(FILES, len(names))):
        near = {line + step for line in changed.get(name, ()) for step in range(-2 * NEAR, 2 * NEAR + 1)}
        found[name] = {*range(1, len(split_lines(old.read(name) or b"")))} - near
    return found


def _survivors(
    repository: ReleaseRepository, insertions: Iterable[Insertion]
) -> Iterator[tuple[Insertion, Sequence[int]]]:
    """Yield the insertions of which a neighbour stands in the same function of every release, and after which line."""
    for insertion in insertions:
        after = []
        for source, truth in zip(repository.sources, repository.follow(insertion), strict=True):
            line = truth.before or truth.after
            if line is None or scope_of(source.read(insertion.file) or b"", line) != insertion.scope:
                break
            after.append(line if truth.before else line - 1)
        else:
            yield insertion, after
