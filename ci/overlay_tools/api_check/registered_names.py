"""The names that files make known to upstream: architectures, model types, processors; and who else has them."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator

from overlay_tools.upstream.source_tree import SourceTree

SERVING = "sglang/srt/"  # where the code is that serves; as much again is for other purposes
MODELS, _CONFIGS, PROCESSORS = "sglang/srt/models/", "sglang/srt/configs/", "sglang/srt/multimodal/processors/"
REGISTERING = (MODELS, _CONFIGS, PROCESSORS)  # where files are that make names known


def registered_names(path: str, tree: ast.Module | None) -> Iterator[tuple[int, str, str]]:
    """Yield what a file makes known to upstream: its line, kind and name."""
    for node in tree.body if tree else []:
        if path.startswith(MODELS) and _assigns(node, "EntryClass"):
            yield from ((node.lineno, "architecture", name) for name in sorted(entry_classes(tree)))
        if path.startswith(PROCESSORS):
            yield from ((node.lineno, "processor", name) for name in _processor_names(node))
        for item in node.body if path.startswith(_CONFIGS) and isinstance(node, ast.ClassDef) else []:
            value = getattr(item, "value", None)
            if _assigns(item, "model_type") and isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield item.lineno, "model_type", value.value


def places_of(
    sources: SourceTree, names: Collection[tuple[str, str]], files: Iterable[str]
) -> dict[tuple[str, str], list[tuple[str, int]]]:
    """Return where files of a release give something one of some names: by kind and name, each file and line."""
    found: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for path in files:
        tree = sources.tree(path)
        for node in ast.walk(tree) if tree else ():
            for name in _given(path, node):
                if name in names:
                    found.setdefault(name, []).append((path, getattr(node, "lineno", 0)))
    return found


def _given(path: str, node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the names, each with its kind, that a node of a file of upstream's gives something."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield "architecture", node.value
    elif isinstance(node, ast.ClassDef):
        if path.startswith(MODELS):
            yield "architecture", node.name
        if path.startswith(PROCESSORS):
            yield from (("processor", name) for name in _processor_names(node))
    elif _assigns(node, "model_type") and isinstance(value := getattr(node, "value", None), ast.Constant):
        yield "model_type", str(value.value)


def entry_classes(tree: ast.Module | None) -> set[str]:
    """Return the names that a file of models lists as its EntryClass."""
    nodes = [node for node in (tree.body if tree else []) if _assigns(node, "EntryClass")]
    values = [node.value for node in nodes if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value]
    return {item.id for value in values for item in ast.walk(value) if isinstance(item, ast.Name)}


def _processor_names(node: ast.AST) -> list[str]:
    """Return the name of a processor and those of the models that it serves."""
    if not isinstance(node, ast.ClassDef):
        return []
    lists = [item for item in node.body if _assigns(item, "models")]
    models = [name.id for item in lists for name in ast.walk(item) if isinstance(name, ast.Name)]
    return [node.name, *(name for name in models if name != "models")]


def _assigns(node: ast.AST, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return getattr(node, "value", None) is not None and name in (getattr(item, "id", None) for item in targets)
