"""Every place of a release that decides by the name of a base of ours, and what makes it right for ours.

A base is named by its architecture, its draft's, its configuration class or its model type. How each place is handled,
or why it need not be, stands in ci/contract.toml.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from overlay_tools.api_check.bindings import FUNCTION, last_name
from overlay_tools.api_check.contract_file import Entry, contract_path, load_contract
from overlay_tools.api_check.registry_rows import base_names, naming
from overlay_tools.api_check.resolver import NameResolver, read_overlay
from overlay_tools.settings import Project
from overlay_tools.upstream.source_tree import SourceTree

MODULE = "<module>"
_SHOWN = 40
_IDLE = re.compile(r"\s*(?:#|from\b|import\b)")  # lines not worth a parse: comments and imports
_CONTAINERS = {"frozenset", "set", "tuple", "list", "dict"}
_TESTS = {"isinstance", "issubclass"}


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseMention:
    """One place of a release that names a base.

    `scope`: the function or class that it is in; `what`: what is named and where it is put, in words that outlive a
    moved line; `handled`: the mechanism that makes it right for ours; `waived`: the reason why none need; both empty if
    no one has said.
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
    resolver = NameResolver(sources, read_overlay(project.overlay))
    names = base_names(project, resolver)
    found = [
        mention for file in sorted(naming(project, resolver, names)) for mention in _mentions_in(sources, file, names)
    ]
    left = {entry: entry.times for entry in load_contract(contract_path(project)).mentions}
    for index, mention in enumerate(found):
        entry = next((entry for entry, times in left.items() if times and _fits(entry, mention)), None)
        if entry is not None:
            left[entry] -= 1
            found[index] = replace(mention, handled=entry.handled, waived=entry.reason)
    return found


def unused_classifications(project: Project, mentions: Sequence[BaseMention]) -> list[str]:
    """Return a line for each classification that fits no place of all locked releases."""
    contract = load_contract(contract_path(project))
    return [
        f"{contract.path}:{entry.line}: the classification of {' or '.join(entry.patterns['what'])} fits nothing."
        for entry in contract.mentions
        if not any(_fits(entry, mention) for mention in mentions)
    ]


def _fits(entry: Entry, mention: BaseMention) -> bool:
    return entry.fits(mention.release, file=mention.file, scope=mention.scope, what=mention.what)


def _mentions_in(sources: SourceTree, file: str, names: Collection[str]) -> Iterator[BaseMention]:
    named = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(names)))})\b")
    text = (sources.read(file) or b"").decode("utf-8", "replace")
    rows, hits = text.split("\n"), [hit.start() for name in names for hit in re.finditer(re.escape(name), text)]
    numbers = {text.count("\n", 0, hit) for hit in hits}
    lines = {number + 1 for number in numbers if named.search(rows[number]) and not _IDLE.match(rows[number])}
    tree = sources.tree(file) if lines else None
    for node, parents in _near(tree, lines, ()) if tree is not None else ():
        what, where = _said(node, named, names), _put(node, parents)
        if what and where != " in __all__":
            scope = ".".join(item.name for item in parents if isinstance(item, (*FUNCTION, ast.ClassDef)))
            line: int = getattr(node, "lineno", 0)
            what = where + what.partition(" ")[2] if where == "isinstance " else what + where
            yield BaseMention(release=sources.version, file=file, line=line, scope=scope or MODULE, what=what)


def _near(
    node: ast.AST, lines: set[int], parents: tuple[ast.AST, ...]
) -> Iterator[tuple[ast.AST, tuple[ast.AST, ...]]]:
    """Yield the names and texts on some lines, each with what it is in, but for those that decide nothing.

    Those are imports, annotations, base classes and docstrings.
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
                yield from _near(child, lines, (*parents, node))


def _said(node: ast.AST, named: re.Pattern[str], names: Collection[str]) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        if node.value in names:
            return f"string {node.value!r}"
        return f"text {node.value[:_SHOWN]!r}" if named.search(node.value) else ""
    name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
    return f"class {name}" if name in names else ""


def _put(node: ast.AST, parents: tuple[ast.AST, ...]) -> str:
    """Say what a name is compared with, given to or kept in."""
    for parent in reversed(parents):
        if isinstance(parent, ast.Compare):
            other = parent.comparators[0] if node is parent.left else parent.left
            return f" compared with {ast.unparse(other)}"
        if isinstance(parent, ast.Call) and node is not parent.func:
            called = last_name(parent.func)
            if called in _TESTS:
                return "isinstance "
            if called not in _CONTAINERS:
                return f" given to {called}"
        if isinstance(parent, (ast.Assign, ast.AnnAssign)):
            targets = parent.targets if isinstance(parent, ast.Assign) else [parent.target]
            return f" in {', '.join(map(ast.unparse, targets))}"
        if isinstance(parent, ast.stmt):
            return ""
        node = parent
    return ""
