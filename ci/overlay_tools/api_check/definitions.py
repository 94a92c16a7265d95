"""The functions and classes of a module of upstream's, each parsed when it is asked for.

A release has megabytes of modules from which the overlay takes a name or two, and to parse them took most of the time.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from overlay_tools.api_check.bindings import Binding, Bindings, collect_bindings
from overlay_tools.errors import WheelError
from overlay_tools.upstream.source_tree import parse

_DEFINITION = re.compile(rb"(?:async def|def|class) (\w+)[(:\[]")  # a name in other letters is parsed at once
_STATEMENT = re.compile(rb"^[^\s)\]}#]", re.MULTILINE)  # another line is part of what is above it
_QUOTES = (b'"""', b"'''")


@dataclass(frozen=True, kw_only=True, slots=True)
class CutModule:
    """A module's statements but for its definitions; and these, unparsed: by name, the line before it and its text."""

    rest: ast.Module
    definitions: Mapping[str, tuple[int, bytes]]


class LazyBindings(dict[str, list[Binding]]):
    """What a module binds; `later` gives what a definition does, and is asked once.

    It is read by name only: its values are not all there.
    """

    def __init__(self, known: Bindings, later: Mapping[str, Callable[[], list[Binding]]]) -> None:
        super().__init__({**known, **{name: [] for name in later}})
        self._later = dict(later)

    def __getitem__(self, name: str) -> list[Binding]:
        if name in self._later:
            self[name] = self._later.pop(name)()
        return super().__getitem__(name)

    def get(self, name: str, default: list[Binding] | None = None) -> list[Binding] | None:  # type: ignore[override]
        """Return what a name is bound to, or the default."""
        return self[name] if name in self else default  # noqa: SIM401


def cut_module(data: bytes) -> CutModule | None:
    """Cut the definitions out of a module, or return None if it is not certain where they begin and end.

    They must begin in the first column and be there once, and no text of several lines may reach over their ends.
    """
    if b"\r" in data or b"\f" in data or b"overload" in data:
        return None
    starts = [*(match.start() for match in _STATEMENT.finditer(data)), len(data)]
    rest, found, line, at = [data[: starts[0]]], dict[str, tuple[int, bytes]](), data.count(b"\n", 0, starts[0]), 0
    cut_to = 0
    while at < len(starts) - 1:
        begin = starts[at]
        while at < len(starts) - 2 and data.startswith(b"@", starts[at]):  # a decorator is part of what follows
            at += 1
        named, at = _DEFINITION.match(data, starts[at]), at + 1
        end = starts[at]
        lines = data.count(b"\n", begin, end)
        if named is None:
            rest.append(data[begin:end])
        else:
            name, text = named[1].decode(), data[begin:end]
            # All definitions before have an even number of marks; where no text is open, so has what is between them.
            between, cut_to = data[cut_to:begin], end
            is_open = any(between.count(mark) % 2 or text.count(mark) % 2 for mark in _QUOTES)
            if name in found or is_open or text.rstrip(b"\n").endswith(b"\\"):
                return None
            found[name] = line, text
            rest.append(b"\n" * lines)
        line += lines
    try:
        tree = parse(b"".join(rest), "", keep=False)
    except WheelError:
        return None
    bound, _ = collect_bindings(tree.body, "")
    return None if bound.keys() & found.keys() else CutModule(rest=tree, definitions=found)


def bind_definitions(cut: CutModule, known: Bindings, package: str, whole: Callable[[], ast.Module]) -> LazyBindings:
    """Return what a module binds, whose definitions are parsed when they are asked for.

    Parameters: `known`, what the rest of it binds; `whole` gives the tree of the module.
    """

    def define(name: str) -> list[Binding]:
        line, text = cut.definitions[name]
        try:
            body = parse(b"\n" * line + text, "", keep=False).body
        except WheelError:
            body = whole().body
        return collect_bindings(body, package)[0].get(name, [None])

    return LazyBindings(known, {name: partial(define, name) for name in cut.definitions})
