"""Made-up insertions: one line each, between two statements of a function, near lines that upstream changed.

Where one belongs in another release is found another way than by any tool that is measured: both statements are
followed through every locked release between the two, diff by diff.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from overlay_tools.patches.code_spans import scope_of
from overlay_tools.upstream.source_tree import SourceTree, parse

NEAR = 3  # lines from a change of upstream's, so that it reaches into the context of the hunk
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, kw_only=True, slots=True)
class Insertion:
    """A line that goes into `file` after its line `after` (counted from 1), in the function `scope`."""

    file: str
    after: int
    line: str
    scope: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """Where the statements before and after an insertion stand in the new release, None where upstream changed them."""

    before: int | None
    after: int | None


Answer = tuple[str, bytes] | None  # the file and its new content, or None where a tool gives up


def choose(sources: SourceTree, changed: Mapping[str, Iterable[int]], count: int) -> list[Insertion]:
    """Choose insertions near changed lines, at most one a function; the same ones on every run."""
    found = []
    for file, lines in sorted(changed.items()):
        near = {line + step for line in lines for step in range(-NEAR, NEAR + 1)}
        for scope, function in _functions(parse(sources.read(file) or b"", file)):
            if gap := _first_gap(function, near):
                after, indentation = gap
                found.append(Insertion(file=file, after=after, line=indentation, scope=scope))
    chosen = random.Random(1).sample(found, min(count, len(found)))
    return [dataclasses.replace(item, line=f"{item.line}pass  # insertion {n}") for n, item in enumerate(chosen)]


def judge(insertion: Insertion, truth: Neighbours, old: SourceTree, answer: Answer) -> str:
    """Say whether an answer is right: in the function, and next to one of the statements that it stood between."""
    if answer is None:
        return "given up"
    file, content = answer
    lines = content.decode("utf-8").split("\n")
    at = next((n for n, line in enumerate(lines) if line.strip() == insertion.line.strip()), None)
    if at is None:
        return "given up"
    if file == insertion.file and (truth.before is not None or truth.after is not None):
        return "right" if at == truth.before or at + 1 == truth.after else "wrong"
    # Upstream changed both statements, or moved them: the function's name and a neighbour's text are what is left.
    was = (old.read(insertion.file) or b"").decode("utf-8").split("\n")
    same_before = lines[at - 1].strip() == was[insertion.after - 1].strip()
    same_after = lines[at + 1].strip() == was[insertion.after].strip()
    names = {scope.rpartition(".")[2] for scope in (insertion.scope, scope_of(content, at + 1))}
    return "right" if (same_before or same_after) and len(names) == 1 else "wrong"


def _functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Yield the functions of a module and the methods of its classes, by dotted name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, FUNCTION):
            yield prefix + child.name, child


def _first_gap(function: ast.AST, near: Collection[int]) -> tuple[int, str] | None:
    """Return the last line of a statement that another one follows at once, and how it is indented."""
    for node in ast.walk(function):
        body = getattr(node, "body", None)
        for first, second in itertools.pairwise(body if isinstance(body, list) else ()):
            whole = not isinstance(second, (*FUNCTION, ast.ClassDef))  # these can begin with a decorator
            if whole and first.end_lineno in near and second.lineno == first.end_lineno + 1:
                return first.end_lineno, " " * first.col_offset
    return None
