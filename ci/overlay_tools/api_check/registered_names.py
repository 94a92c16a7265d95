"""The names that files make known to upstream: architectures, model types, processors; and who else has them."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator

from overlay_tools.upstream.source_tree import SourceTree

MODELS, _CONFIGS, PROCESSORS = "sglang/srt/models/", "sglang/srt/configs/", "sglang/srt/multimodal/processors/"


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


def places_of(sources: SourceTree, names: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return where a release has names of its own, by kind and name: the file and line that it has each first."""
    words = {name for _, name in names}
    found: dict[tuple[str, str], str] = {}
    for path in sources.holding(*words) if words else []:
        for node in nodes_of(sources.tree(path)):
            for kind, name in names:
                if defines(kind, name, path, node):
                    found.setdefault((kind, name), f"{path}:{getattr(node, 'lineno', 0)}")
    return found


def defines(kind: str, name: str, path: str, node: ast.AST) -> bool:
    """Say whether a node of a file of upstream's gives something this name."""
    if kind == "model_type":
        value = getattr(node, "value", None)
        return _assigns(node, "model_type") and isinstance(value, ast.Constant) and value.value == name
    if kind == "processor":
        return path.startswith(PROCESSORS) and name in _processor_names(node)
    is_class = isinstance(node, ast.ClassDef) and node.name == name and path.startswith(MODELS)
    return is_class or (isinstance(node, ast.Constant) and node.value == name)


def entry_classes(tree: ast.Module | None) -> set[str]:
    """Return the names that a file of models lists as its EntryClass."""
    nodes = [node for node in (tree.body if tree else []) if _assigns(node, "EntryClass")]
    values = [node.value for node in nodes if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value]
    return {item.id for value in values for item in ast.walk(value) if isinstance(item, ast.Name)}


def nodes_of(tree: ast.Module | None) -> Iterator[ast.AST]:
    """Yield the nodes of a syntax tree, none of those of a file that is not there."""
    return ast.walk(tree) if tree else iter(())


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
