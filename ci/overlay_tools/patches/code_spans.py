"""The functions and classes of a file, by dotted name and lines; a file that is no Python has none."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from overlay_tools.errors import WheelError
from overlay_tools.upstream.source_tree import parse


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeSpan:
    """A function or class: dotted name, and its lines `first` (with decorators) up to `end`, counted from 0."""

    name: str
    first: int
    end: int


def scope_of(content: bytes, line: int) -> str:
    """Return the dotted name of the innermost function or class around a line, counted from 1; "" if there is none."""
    return innermost(lines_of(content), line - 1)


def innermost(lines: Sequence[str], index: int) -> str:
    """Return the name of the innermost scope around a line, counted from 0; "" if there is none."""
    names = around(lines, index)
    return names[-1] if names else ""


def around(lines: Sequence[str], index: int) -> list[str]:
    """Return the names of the scopes around a line, counted from 0, outer before inner."""
    return [scope.name for scope in scopes("\n".join(lines)) if scope.first <= index < scope.end]


def range_of(lines: Sequence[str], scope: str) -> range | None:
    """Return the lines of a scope, counted from 0, of "" all of them; None if there is no such scope."""
    if not scope:
        return range(len(lines) - (lines[-1] == ""))  # but for what comes after the last line end
    return next((range(s.first, s.end) for s in scopes("\n".join(lines)) if s.name == scope), None)


def part_of(lines: Sequence[str], scope: str) -> Sequence[str]:
    """Return the text of a scope, nothing if there is no such scope."""
    part = range_of(lines, scope)
    return lines[part.start : part.stop] if part is not None else []


@lru_cache(maxsize=256)
def scopes(text: str) -> Sequence[CodeSpan]:
    """List a file's functions and classes, outer before inner; of two with one name the second is called NAME#2."""
    try:
        tree = parse(text.encode("utf-8", "surrogateescape"), "")
    except WheelError:
        return ()  # no Python, or none any more with this hunk in it: one scope, the file
    found: list[CodeSpan] = []
    seen: dict[str, int] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = prefix + child.name
                seen[name] = seen.get(name, 0) + 1
                name += f"#{seen[name]}" if seen[name] > 1 else ""
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                found.append(CodeSpan(name=name, first=first - 1, end=child.end_lineno or child.lineno))
                visit(child, name + ".")
            elif not isinstance(child, ast.expr):  # whose inside holds no function but lambdas
                visit(child, prefix)

    visit(tree, "")
    return found


def lines_of(content: bytes) -> list[str]:
    """Return the lines of a file; joined by line feeds and encoded alike they are the file again, to the byte."""
    return content.decode("utf-8", "surrogateescape").split("\n")
