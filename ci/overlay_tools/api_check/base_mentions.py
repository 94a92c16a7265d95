"""The places where a release decides by the name of a base, and what makes each of them right for a derived model.

A base is named by its architecture, its draft's, its configuration class or its model type. ci/contract.toml says how
each place is handled, or why nothing needs to be done.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from overlay_tools.api_check.bindings import FUNCTION, last_name
from overlay_tools.api_check.contract_file import Entry, contract_path, load_contract
from overlay_tools.api_check.overlay_code import read_overlay
from overlay_tools.api_check.registry_rows import base_names, files_naming
from overlay_tools.api_check.resolver import NameResolver
from overlay_tools.settings import Project
from overlay_tools.upstream.source_tree import SourceTree

_MODULE_SCOPE = "<module>"
_TEXT_LENGTH = 40
_COMMENT_OR_IMPORT = re.compile(r"\s*(?:#|from\b|import\b)")  # such lines are not worth parsing a file for
_CONTAINERS = {"frozenset", "set", "tuple", "list", "dict"}
_TYPE_CHECKS = {"isinstance", "issubclass"}


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseMention:
    """One place of a release that names a base.

    `scope`: the function or class that it is in; `what`: what is named and what is done with it, in words that stay the
    same when lines move; `handled`: the mechanism that makes it right for a derived model; `waived`: the reason why
    nothing needs to be done. Both are empty for a place that ci/contract.toml does not list.
    """

    release: str
    file: str
    line: int
    scope: str
    what: str
    handled: str = ""
    waived: str = ""

    @property
    def classified(self) -> bool:
        """Say whether it is handled or waived."""
        return bool(self.handled or self.waived)


def find_base_mentions(project: Project, sources: SourceTree) -> list[BaseMention]:
    """Return every place of a release that names a base, classified as ci/contract.toml says.

    Raises ContractError if ci/contract.toml or the overlay cannot be read.
    """
    resolver = NameResolver(sources, read_overlay(project, sources.version))
    names = base_names(project, resolver)
    files = sorted(files_naming(project, resolver, names))
    found = [mention for file in files for mention in _mentions_in(sources, file, names)]
    unused = {entry: entry.times for entry in load_contract(contract_path(project)).mentions}
    for index, mention in enumerate(found):
        entry = next((entry for entry, times in unused.items() if times and _matches(entry, mention)), None)
        if entry is not None:
            unused[entry] -= 1
            found[index] = replace(mention, handled=entry.handled, waived=entry.reason)
    return found


def unused_mentions(project: Project, found: Sequence[BaseMention]) -> list[str]:
    """Return a line for each entry of ci/contract.toml that matches no mention found in all locked releases."""
    contract = load_contract(contract_path(project))
    return [
        f"{contract.path}:{entry.line}: the mention of {entry.what} matches nothing in any locked release."
        for entry in contract.mentions
        if not any(_matches(entry, mention) for mention in found)
    ]


def _matches(entry: Entry, mention: BaseMention) -> bool:
    return entry.matches(mention.release, file=mention.file, scope=mention.scope, what=mention.what)


def _mentions_in(sources: SourceTree, file: str, names: Collection[str]) -> Iterator[BaseMention]:
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(names)))})\b")
    text = (sources.read(file) or b"").decode("utf-8", "replace")
    rows, starts = text.split("\n"), [found.start() for name in names for found in re.finditer(re.escape(name), text)]
    indexes = {text.count("\n", 0, start) for start in starts}
    lines = {
        index + 1 for index in indexes if pattern.search(rows[index]) and not _COMMENT_OR_IMPORT.match(rows[index])
    }
    tree = sources.tree(file) if lines else None
    for node, parents in _expressions_on(lines, tree, ()) if tree is not None else ():
        if what := _description(node, parents, pattern, names):
            scope = ".".join(item.name for item in parents if isinstance(item, (*FUNCTION, ast.ClassDef)))
            line: int = getattr(node, "lineno", 0)
            yield BaseMention(release=sources.version, file=file, line=line, scope=scope or _MODULE_SCOPE, what=what)


def _expressions_on(
    lines: set[int], node: ast.AST, parents: tuple[ast.AST, ...]
) -> Iterator[tuple[ast.AST, tuple[ast.AST, ...]]]:
    """Yield the names and texts on some lines, each with the nodes that it is in.

    Those in imports, annotations, base classes and docstrings decide nothing, and are left out.
    """
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, (ast.Import, ast.ImportFrom)):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue
            decorators: list[ast.expr] = getattr(child, "decorator_list", [])
            first = min(getattr(item, "lineno", 0) for item in [child, *decorators])
            if not first or any(first <= line <= getattr(child, "end_lineno", 0) for line in lines):
                if isinstance(child, (ast.Constant, ast.Name, ast.Attribute)):
                    yield child, (*parents, node)
                yield from _expressions_on(lines, child, (*parents, node))


def _description(node: ast.AST, parents: tuple[ast.AST, ...], pattern: re.Pattern[str], names: Collection[str]) -> str:
    """Say what is named and what is done with it, or nothing if it names no base or decides nothing."""
    kind, name = _named(node, pattern, names)
    use = _use(node, parents)
    if not name or use == "in __all__":
        return ""
    return f"isinstance {name}" if use == "isinstance" else f"{kind} {name} {use}".rstrip()


def _named(node: ast.AST, pattern: re.Pattern[str], names: Collection[str]) -> tuple[str, str]:
    """Return by what a node names a base, a `string`, `text` or `class`, and this; empty texts if it names none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        if node.value in names:
            return "string", repr(node.value)
        return ("text", repr(node.value[:_TEXT_LENGTH])) if pattern.search(node.value) else ("", "")
    name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
    return ("class", name) if name in names else ("", "")


def _use(node: ast.AST, parents: tuple[ast.AST, ...]) -> str:
    """Say what a name is compared with, passed to or assigned to."""
    for parent in reversed(parents):
        if isinstance(parent, ast.Compare):
            other = parent.comparators[0] if node is parent.left else parent.left
            return f"compared with {ast.unparse(other)}"
        if isinstance(parent, ast.Call) and node is not parent.func:
            called = last_name(parent.func)
            if called in _TYPE_CHECKS:
                return "isinstance"
            if called not in _CONTAINERS:
                return f"given to {called}"
        if isinstance(parent, (ast.Assign, ast.AnnAssign)):
            targets = parent.targets if isinstance(parent, ast.Assign) else [parent.target]
            return f"in {', '.join(map(ast.unparse, targets))}"
        if isinstance(parent, ast.stmt):
            return ""
        node = parent
    return ""
