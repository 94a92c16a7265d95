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

from overlay_tools.patches.code_spans import find_spans, scope_of
from overlay_tools.patches.model import split_lines
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


def choose(sources: SourceTree, changed: Mapping[str, Iterable[int]], count: int, seed: int) -> list[Insertion]:
    """Choose insertions near changed lines, at most one a function; the same ones for a seed."""
    found = []
    for file, lines in sorted(changed.items()):
        near = {line + step for line in lines for step in range(-NEAR, NEAR + 1)}
        content = sources.read(file) or b""
        for function in _functions(parse(content, file)):
            if gap := _first_gap(function, near):
                after, indentation = gap
                scope = scope_of(content, after)
                found.append(Insertion(file=file, after=after, line=indentation, scope=scope))
    drawn = random.Random(seed).sample(found, min(count, len(found)))
    chosen = sorted(drawn, key=lambda item: item.file)  # to read each file once
    return [dataclasses.replace(item, line=f"{item.line}pass  # insertion {n}") for n, item in enumerate(chosen)]


def judge(insertion: Insertion, truth: Neighbours, old: SourceTree, new: SourceTree, answer: Answer) -> str:
    """Say whether an answer is right: in the function, and next to one of the statements that it stood between."""
    if answer is None:
        return "given up"
    file, content = answer
    lines = content.decode("utf-8").split("\n")
    at = next((n for n, line in enumerate(lines) if line.strip() == insertion.line.strip()), None)
    if at is None:
        return "given up"
    before, after = _plausible(insertion, truth.before, new), _plausible(insertion, truth.after, new)
    if file == insertion.file and (before is not None or after is not None):
        return "right" if at == before or at + 1 == after else "wrong"
    # Upstream changed both statements, or moved them: the function's name and a neighbour's text are what is left.
    was = (old.read(insertion.file) or b"").decode("utf-8").split("\n")
    same_before = lines[at - 1].strip() == was[insertion.after - 1].strip()
    same_after = lines[at + 1].strip() == was[insertion.after].strip()
    scope = scope_of(content, at + 1)
    if _last_name(scope) == _last_name(insertion.scope):
        return "right" if same_before or same_after else "wrong"
    renamed = _is_renamed(insertion, scope, file, old, new)
    return "right" if same_before and same_after and renamed else "wrong"


def _plausible(insertion: Insertion, line: int | None, new: SourceTree) -> int | None:
    """Return where a neighbour stands, None if it has left the function, which is still there: that is a twin of it."""
    content = new.read(insertion.file) or b""
    if line is None or scope_of(content, line) == insertion.scope:
        return line
    return None if insertion.scope in _scopes(content) else line


def _is_renamed(insertion: Insertion, scope: str, file: str, old: SourceTree, new: SourceTree) -> bool:
    """Tell whether a function can be what an insertion's own is called now: one is gone, the other is new."""
    own, there = old.read(insertion.file) or b"", old.read(file) or b""
    gone = insertion.scope not in _scopes(new.read(insertion.file) or b"")
    was = own.decode("utf-8").split("\n")
    pair = "\n".join(was[insertion.after - 1 : insertion.after + 1]).encode()
    twin = file != insertion.file and pair in there
    return gone and not twin and scope not in _scopes(own) | _scopes(there)


def _scopes(content: bytes) -> set[str]:
    return {span.name for span in find_spans("\n".join(split_lines(content)))}


def _last_name(scope: str) -> str:
    return scope.rpartition(".")[2]


def _functions(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the functions of a module and the methods of its classes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _functions(child)
        elif isinstance(child, FUNCTION):
            yield child


def _first_gap(function: ast.AST, near: Collection[int]) -> tuple[int, str] | None:
    """Return the last line of a statement that another one follows at once, and how it is indented."""
    for node in ast.walk(function):
        body = getattr(node, "body", None)
        for first, second in itertools.pairwise(body if isinstance(body, list) else ()):
            whole = not isinstance(second, (*FUNCTION, ast.ClassDef))  # these can begin with a decorator
            if whole and first.end_lineno in near and second.lineno == first.end_lineno + 1:
                return first.end_lineno, " " * first.col_offset
    return None
