"""The places where a release decides by the name of a base, and what makes each of them right for a derived model.

A base is named by its architecture, its draft's, a class of its or its model type. Most places are right by how a
derived model is made; ci/README.md says what these mechanisms are. ci/contract.toml says of each other one why nothing
needs to be done.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from overlay_tools.api_check.bindings import FUNCTION, absolute_module, last_name, walk_imports
from overlay_tools.api_check.contract_file import Entry, contract_path, load_contract
from overlay_tools.api_check.definitions import parse_around
from overlay_tools.api_check.overlay_code import read_overlay
from overlay_tools.api_check.registered_names import MODELS
from overlay_tools.api_check.registry_rows import ROWS, BaseNames, base_names, files_naming
from overlay_tools.api_check.resolver import NameResolver
from overlay_tools.settings import Project
from overlay_tools.upstream.source_tree import SourceTree, module_name
from overlay_tools.user_files import read_text

_MODULE_SCOPE = "<module>"
_TEXT_LENGTH = 40
_COMMENT_OR_IMPORT = re.compile(r"\s*(?:#|from\b|import\b)")  # such lines are not worth parsing a file for
_CONTAINERS = {"frozenset", "set", "tuple", "list", "dict"}
_TYPE_CHECKS = {"isinstance", "issubclass"}
_OWN_ENTRIES = {"in EntryClass", "in _CONFIG_REGISTRY"}
_SAYING = re.compile(
    r"(?:print|log|debug|info|warn|warning|error|exception|critical|fatal)(?:_once)?|.*(?:Error|Exception)"
)
_PASSING_ON = {"", "cast", "field", "setattr", "super", "__new__"}  # what they are given decides nothing
# Parsers are chosen by an option or by the chat template, and have names that some models have too.
_PARSERS = "sglang/srt/parser/"


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseMention:
    """One place of a release that names a base.

    `scope`: the function or class that it is in; `what`: what is named and what is done with it, in words that stay the
    same when lines move; `handled`: the mechanism that makes it right for a derived model; `waived`: the reason
    why nothing needs to be done. Both are empty for a place that ci/contract.toml has to list, and does not.
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
    """Return every place of a release that decides by the name of a base.

    What is not right by a mechanism is waived as ci/contract.toml says. The files of upstream's other models
    decide for these alone, and are left out, as is all that does not serve.
    Raises ContractError if ci/contract.toml or the overlay cannot be read.
    """
    resolver = NameResolver(sources, read_overlay(project, sources.version))
    names = base_names(resolver)
    used = _used_models(resolver) if names.every else set()
    files = [
        path
        for path in sorted(files_naming(resolver, names.every))
        if not path.startswith(_PARSERS) and (path in used or not path.startswith(MODELS))
    ]
    found = [mention for file in files for mention in _mentions_in(sources, file, names)]
    unused = {entry: entry.times for entry in load_contract(contract_path(project)).mentions}
    for index, mention in enumerate(found):
        matching = (entry for entry, times in unused.items() if times and _matches(entry, mention))
        if not mention.handled and (entry := next(matching, None)) is not None:
            unused[entry] -= 1
            found[index] = replace(mention, waived=entry.reason)
    return found


def unused_mentions(project: Project, found: Sequence[BaseMention]) -> list[str]:
    """Return a line for each entry of ci/contract.toml that no mention found in all locked releases needs.

    One that is about a base from which no model of the overlay derives is of use to the next one that does.
    """
    contract = load_contract(contract_path(project))
    rows = "".join(read_text(path) for path in sorted((project.overlay / ROWS).glob("*.py")))
    return [
        f"{contract.path}:{entry.line}: the mention of {entry.what} is needed in no locked release."
        for entry in contract.mentions
        if not any(_matches(entry, mention) for mention in found if not mention.handled)
        and (not entry.base or f'"{entry.base}"' in rows)
    ]


def _matches(entry: Entry, mention: BaseMention) -> bool:
    return entry.matches(mention.release, file=mention.file, scope=mention.scope, what=mention.what)


def _used_models(resolver: NameResolver) -> set[str]:
    """Return the files of upstream's models that the overlay's import, or that these import in turn."""
    used, left = set[str](), list(resolver.overlay.files)
    while left:
        path = left.pop()
        tree = resolver.overlay.files.get(path)
        if tree is None and (data := resolver.sources.read(path)) is not None:
            lines = {data.count(b"\n", 0, found.start()) + 1 for found in re.finditer(rb"import\b", data)}
            tree = parse_around(data, lines, f"{path} of sglang {resolver.sources.version}")
        named = _imported_models(tree, module_name(path).rpartition(".")[0]) if tree else frozenset()
        new = {file for file in named - used if resolver.sources.read(file) is not None}
        used |= new
        left += new
    return used


@lru_cache(maxsize=1024)
def _imported_models(tree: ast.Module, package: str) -> frozenset[str]:
    """Return the files of models that imports of a module in `package` may name."""
    found = set[str]()
    for node in walk_imports(tree):
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            module = absolute_module(node, package)
            names = [module, *(f"{module}.{name}" for name in names)]
        found |= {f"{name.replace('.', '/')}.py" for name in names}
    return frozenset(file for file in found if file.startswith(MODELS))


def _mentions_in(sources: SourceTree, file: str, names: BaseNames) -> Iterator[BaseMention]:
    data = sources.read(file) or b""
    text = data.decode("utf-8", "replace")
    words = [re.escape(name) for name in names.every if name in text]
    # A pattern that begins with its word, and looks back for the beginning of it, is searched for much faster.
    starts = [found.start() for word in words for found in re.finditer(rf"{word}\b(?<!\w{word})", text)]
    rows, indexes = text.split("\n"), {text.count("\n", 0, start) for start in starts}
    lines = {index + 1 for index in indexes if not _COMMENT_OR_IMPORT.match(rows[index])}
    tree = parse_around(data, lines, f"{file} of sglang {sources.version}") if lines else None
    for node, parents in _expressions_on(lines, tree, ()) if tree is not None else ():
        what, handled = _decision(node, parents, names, text)
        if what:
            scope = ".".join(item.name for item in parents if isinstance(item, (*FUNCTION, ast.ClassDef)))
            yield BaseMention(
                release=sources.version,
                file=file,
                line=getattr(node, "lineno", 0),
                scope=scope or _MODULE_SCOPE,
                what=what,
                handled=handled,
            )


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


def _decision(node: ast.AST, parents: tuple[ast.AST, ...], names: BaseNames, text: str) -> tuple[str, str]:
    """Say what is named and what is done with it, and by which mechanism that is right; empty texts for no decision.

    Parameters: `text`, that of the file.
    """
    use = _use(node, parents)
    if use == "in __all__":
        return "", ""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        if node.value in names.model_types:
            return (f"string {node.value!r} {use}", "") if _goes_by_model_type(use, parents, text) else ("", "")
        return _decision_by_text(node.value, use, names, parents)
    name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
    if name not in names.classes or use.removeprefix("given to ") in _PASSING_ON:
        return "", ""
    if use == "isinstance":
        return f"isinstance {name}", "subclass"
    return f"class {name} {use}", "registry" if use in _OWN_ENTRIES else ""


def _decision_by_text(text: str, use: str, names: BaseNames, parents: tuple[ast.AST, ...]) -> tuple[str, str]:
    if text in names.architectures:
        by_class = use.startswith("compared with ") and re.search(r"\b(?:__name__|__class__|__qualname__|type\()", use)
        return f"string {text!r} {use}".rstrip(), "" if by_class else "draft" if text in names.drafts else "alias"
    if text in names.classes:
        return f"string {text!r} {use}".rstrip(), ""
    if any(re.search(rf"\b{name}\b", text) for name in names.architectures | names.classes):
        statement = next((parent for parent in reversed(parents) if isinstance(parent, ast.stmt)), None)
        said = _SAYING.fullmatch(use.removeprefix("given to ")) or isinstance(statement, (ast.Raise, ast.Assert))
        return f"text {text[:_TEXT_LENGTH]!r} {use}".rstrip(), "message" if said else ""
    return "", ""


def _goes_by_model_type(use: str, parents: tuple[ast.AST, ...], text: str) -> bool:
    """Tell whether a text is one that a model type is compared with or looked up by: some are common words."""
    if use.startswith("in "):
        table = re.escape(use.removeprefix("in "))
        readers = rf"model_type\w*\W*\bin {table}\b|\b{table}(?:\[|\.get\()[^\])]*model_type"
        return "model_type" not in table and re.search(readers, text) is not None
    if use.startswith("given to "):
        call = next(parent for parent in reversed(parents) if isinstance(parent, ast.Call))
        return "model_type" in ast.unparse(call)
    return "model_type" in use


def _use(node: ast.AST, parents: tuple[ast.AST, ...]) -> str:
    """Say what a name is compared with, passed to or assigned to, or nothing where it is but called or assigned."""
    plain = True  # whether the name itself, and no more, is the value
    for parent in reversed(parents):
        if isinstance(parent, ast.Compare):
            other = parent.comparators[0] if node is parent.left else parent.left
            return f"compared with {ast.unparse(other)}"
        if isinstance(parent, ast.Call):
            if node is parent.func:
                return ""
            called = last_name(parent.func)
            if called in _TYPE_CHECKS:
                return "isinstance"
            if called not in _CONTAINERS:
                return f"given to {called}"
        if isinstance(parent, ast.Attribute) and not isinstance(node, ast.Constant):
            return ""
        if isinstance(parent, (ast.Assign, ast.AnnAssign)):
            targets = parent.targets if isinstance(parent, ast.Assign) else [parent.target]
            if plain and not isinstance(node, ast.Constant) and last_name(targets[0]) != "EntryClass":
                return ""
            return f"in {', '.join(map(ast.unparse, targets))}"
        if isinstance(parent, ast.stmt):
            return ""
        node, plain = parent, False
    return ""
