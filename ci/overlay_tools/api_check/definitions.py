"""Parts of a module of upstream's: its functions and classes, parsed when they are asked for, or around some lines.

A release has megabytes of modules from which the overlay takes a name or two, and to parse them took most of the time.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial

from overlay_tools.api_check.bindings import Binding, Bindings, collect_bindings
from overlay_tools.errors import WheelError
from overlay_tools.upstream.source_tree import parse

_INDENTS = (0, 4)
# A name in other letters is parsed at once.
_DEFINITIONS = {n: re.compile(rb" {%d}(?:async def|def|class) (\w+)[(:\[]" % n) for n in _INDENTS}
# Another line is part of what is above it.
_STATEMENTS = {n: re.compile(rb"\n {0,%d}[^\s)\]}#]" % n) for n in _INDENTS}
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


@lru_cache(maxsize=512)  # releases share most of their files
def cut_module(data: bytes) -> CutModule | None:
    """Cut the definitions out of a module, or return None if it is not certain where they begin and end.

    They must begin in the first column and be there once, and no text of several lines may reach over their ends.
    """
    parts = None if b"overload" in data else _parts(data)
    rest, found, line = list[bytes](), dict[str, tuple[int, bytes]](), 0
    for name, text in parts or ():
        if name in found:
            return None
        if name:
            found[name] = line, text
        lines = text.count(b"\n")
        rest.append(b"\n" * lines if name else text)
        line += lines
    try:
        tree = parse(b"".join(rest), "")
    except WheelError:
        return None
    bound, _ = collect_bindings(tree.body, "")
    return None if parts is None or bound.keys() & found.keys() else CutModule(rest=tree, definitions=found)


def parse_around(data: bytes, lines: Collection[int], what: str) -> ast.Module:
    """Return the syntax tree of a module, without the functions, classes and methods in which none of some lines is.

    Parameters: `lines`, counted from 1; `what`, what an error calls the module.
    Raises WheelError if the module is not valid Python.
    """
    with suppress(WheelError):
        return parse(_leave_out(data, lines), what)
    return parse(data, what)


def _leave_out(data: bytes, lines: Collection[int], first: int = 1, indent: int = 0) -> bytes:
    """Return a text, which begins on the line `first`, with nothing on the lines of definitions without any `lines`."""
    kept = []
    for name, text in _parts(data, indent) or [("", data)]:
        end = first + text.count(b"\n")
        if name and not any(first <= line < end or line == first for line in lines):
            kept.append(b" " * indent + b"pass" + b"\n" * (end - first))
        else:
            kept.append(_leave_out(text, lines, first, _INDENTS[-1]) if name and not indent else text)
        first = end
    return b"".join(kept)


def _parts(data: bytes, indent: int = 0) -> list[tuple[str, bytes]] | None:
    """Return a text in parts, each with the name that it defines, empty where it is no definition.

    None if it is not certain where those begin and end, as where a text of several lines may reach over an end.
    Parameters: `indent`, that of the definitions, one of _INDENTS.
    """
    if b"\r" in data or b"\f" in data:
        return None
    starts = [*(match.start() for match in _STATEMENTS[indent].finditer(b"\n" + data)), len(data)]
    parts, at, cut_to = [("", data[: starts[0]])], 0, 0
    while at < len(starts) - 1:
        begin = starts[at]
        while at < len(starts) - 2 and data.startswith(b" " * indent + b"@", starts[at]):
            at += 1  # a decorator is part of what follows
        named, at = _DEFINITIONS[indent].match(data, starts[at]), at + 1
        text = data[begin : starts[at]]
        if named is not None:
            # All definitions before have an even number of marks; where no text is open, so has what is between them.
            between, cut_to = data[cut_to:begin], starts[at]
            is_open = any(between.count(mark) % 2 or text.count(mark) % 2 for mark in _QUOTES)
            if is_open or text.rstrip(b"\n").endswith(b"\\"):
                return None
        parts.append((named[1].decode() if named else "", text))
    return parts


def bind_definitions(cut: CutModule, known: Bindings, package: str, whole: Callable[[], ast.Module]) -> LazyBindings:
    """Return what a module binds, whose definitions are parsed when they are asked for.

    Parameters: `known`, what the rest of it binds; `whole` gives the tree of the module.
    """

    def define(name: str) -> list[Binding]:
        line, text = cut.definitions[name]
        try:
            body = parse(b"\n" * line + text, "").body
        except WheelError:
            body = whole().body
        return collect_bindings(body, package)[0].get(name, [None])

    return LazyBindings(known, {name: partial(define, name) for name in cut.definitions})
