"""What a release's own files import from a module that a hook takes away, or that the overlay replaces."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from overlay_tools.api_check.bindings import absolute_module
from overlay_tools.api_check.references import Reference, code_references
from overlay_tools.api_check.resolver import NameResolver
from overlay_tools.api_check.symbols import Module
from overlay_tools.upstream.source_tree import SourceTree, module_name


def importing(sources: SourceTree, module: str) -> Iterator[str]:
    """Yield each file of a release that imports a module, or something from it."""
    package, _, last = module.rpartition(".")
    for path in sources.holding(last):
        here = module_name(path) if path.endswith("/__init__.py") else module_name(path).rpartition(".")[0]
        for node in ast.walk(sources.tree(path) or ast.Pass()):
            if isinstance(node, ast.ImportFrom):
                source = absolute_module(node, here)
                named = source == module or (source == package and any(alias.name == last for alias in node.names))
            else:
                named = isinstance(node, ast.Import) and any(alias.name == module for alias in node.names)
            if named:
                yield path
                break


def replaced_references(resolver: NameResolver) -> Iterator[Reference]:
    """Yield each name that upstream's files take from a file that the overlay replaces, and that ours lacks."""
    for ours in sorted(resolver.overlay.files.keys() & {*resolver.sources.names}):
        module = module_name(ours)
        for path in importing(resolver.sources, module):
            if path not in resolver.overlay.files:
                for name in _lacking(resolver, module, path):
                    what, problem = f"{path}: {module}.{name}", "upstream's file needs it, and the overlay's lacks it"
                    yield Reference(where=f"overlay/{ours}", kind="import", what=what, problem=problem)


def _lacking(resolver: NameResolver, module: str, path: str) -> list[str]:
    """Return the names that a file of upstream's takes from a module of the overlay that lacks them."""
    tree = resolver.sources.tree(path) or ast.Module(body=[], type_ignores=[])
    whole = Module(name=module_name(path), path=path, in_overlay=False, tree=tree)
    lines = {line: line for line in range(1, (resolver.sources.read(path) or b"").count(b"\n") + 2)}
    found = code_references(resolver, whole, path, lines)
    names = (item.what.rpartition(".")[2] for item in found if item.problem.startswith(f"{module} has no `"))
    return [*dict.fromkeys(names)]
