"""The functions and classes of a file, each by its dotted name and its lines; a file that is not Python has none."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache

from overlay_tools.errors import WheelError
from overlay_tools.patches.model import split_lines
from overlay_tools.upstream.source_tree import parse

_DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeSpan:
    """A function or class: its dotted name, and its lines from `first` (with decorators) up to `end`, from 0."""

    name: str
    first: int
    end: int


def scope_of(content: bytes, line: int) -> str:
    """Return the dotted name of the innermost function or class around a line, counted from 1, or ""."""
    return (scopes_around(split_lines(content), line - 1) or [""])[-1]


def scopes_around(lines: Sequence[str], index: int) -> list[str]:
    """Return the names of the functions and classes around a line, counted from 0, outer before inner."""
    return [span.name for span in find_spans("\n".join(lines)) if span.first <= index < span.end]


def lines_of_scope(lines: Sequence[str], scope: str) -> range | None:
    """Return which lines a function or class has, counted from 0, or None if there is none of that name.

    The scope "" is the whole file.
    """
    if not scope:
        return range(len(lines) - (lines[-1] == ""))  # but for what comes after the last line end
    return next((range(s.first, s.end) for s in find_spans("\n".join(lines)) if s.name == scope), None)


def text_of_scope(lines: Sequence[str], scope: str) -> Sequence[str]:
    """Return the lines of a function or class, empty if there is none of that name."""
    found = lines_of_scope(lines, scope)
    return lines[found.start : found.stop] if found is not None else []


@lru_cache(maxsize=256)
def find_spans(text: str) -> Sequence[CodeSpan]:
    """List a file's functions and classes, outer before inner; of two with one name the second is called NAME#2."""
    try:
        tree = parse(text.encode("utf-8", "surrogateescape"), "")
    except WheelError:
        return ()  # not Python, or no longer with this hunk in it: the file is one scope
    return tuple(_spans_below(tree, ""))


@lru_cache(maxsize=256)
def find_names(text: str) -> Set[str]:
    """Return what a file's code gives a value, imports or defines: each name below those of its functions and classes.

    So `Cache.get.key` is a parameter or a variable of that method, and `Cache.get.self.size` an attribute set in it.
    """
    try:
        return frozenset(_names_below(parse(text.encode("utf-8", "surrogateescape"), ""), ""))
    except WheelError:
        return frozenset()


def _names_below(node: ast.AST, prefix: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        inner = prefix
        if isinstance(child, _DEFINITION):
            yield prefix + child.name
            inner = f"{prefix}{child.name}."
        elif isinstance(child, ast.Name | ast.Attribute) and isinstance(child.ctx, ast.Store):
            yield prefix + ast.unparse(child)
        elif isinstance(child, ast.arg):
            yield prefix + child.arg
        elif isinstance(child, ast.alias):
            yield prefix + (child.asname or child.name)
        yield from _names_below(child, inner)


def _spans_below(node: ast.AST, prefix: str) -> Iterator[CodeSpan]:
    seen = Counter[str]()
    for definition in _definitions_below(node):
        seen[definition.name] += 1
        times = seen[definition.name]
        name = f"{prefix}{definition.name}{f'#{times}' if times > 1 else ''}"
        first = min([definition.lineno, *(decorator.lineno for decorator in definition.decorator_list)])
        yield CodeSpan(name=name, first=first - 1, end=definition.end_lineno or definition.lineno)
        yield from _spans_below(definition, f"{name}.")


def _definitions_below(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Yield the functions and classes that a node defines itself, whether or not under an `if` or the like."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _DEFINITION):
            yield child
        elif not isinstance(child, ast.expr):  # inside an expression there are only lambdas
            yield from _definitions_below(child)
