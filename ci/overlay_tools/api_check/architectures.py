"""The architectures that a release has and an older one had not, and which of them are like the overlay's."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from overlay_tools.api_check.registered_names import MODELS, entry_classes
from overlay_tools.api_check.registry_rows import RegistryRow, read_registry
from overlay_tools.api_check.resolver import NameResolver
from overlay_tools.upstream.source_tree import SourceTree, module_name

_FAMILY = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]+")  # the first word of a name, as `Qwen` of Qwen3NextForCausalLM


@dataclass(frozen=True, kw_only=True, slots=True)
class NewArchitecture:
    """An architecture of upstream's, where it is, and in words why it is like models of the overlay; or empty."""

    name: str
    where: str
    like: str


def find_new_architectures(old: SourceTree, new: NameResolver) -> list[NewArchitecture]:
    """Return the architectures that a release has and another one had not, those first that are like the overlay's."""
    had = {name for path in old.names if path.startswith(MODELS) for name in _listed(old, path, new.sources)}
    rows: dict[str, list[RegistryRow]] = {}
    for row in read_registry(new):
        if base := row.fields.get("base"):
            rows.setdefault(base, []).append(row)
    found = []
    for path in (path for path in new.sources.names if path.startswith(MODELS)):
        for name in sorted(_listed(new.sources, path, old) - had):
            symbols = new.resolve_import(module_name(path), name)
            node = next((symbol.node for symbol in symbols if isinstance(symbol.node, ast.ClassDef)), None)
            bases = {base.name for symbol in symbols if symbol.node is node and node for base in new.mro(symbol)}
            like = "; ".join(_likenesses(name, bases, rows))
            found.append(NewArchitecture(name=name, where=f"{path}:{node.lineno if node else 1}", like=like))
    return sorted(found, key=lambda item: (not item.like, item.name))


def _listed(sources: SourceTree, path: str, other: SourceTree) -> set[str]:
    """Return what a file of models lists, nothing if it is the same in the other release: then it lists nothing new."""
    return set() if sources.read(path) == other.read(path) else entry_classes(sources.tree(path))


def _likenesses(name: str, bases: Collection[str], rows: Mapping[str, Sequence[RegistryRow]]) -> Iterator[str]:
    for base, derived in rows.items():
        first, *others = derived
        ours = f"{first.architecture} ({first.where}){f' and {len(others)} more' if others else ''}"
        if base in bases:
            yield f"derives from {base}, as {ours} does"
        elif _family(name) == _family(base):
            yield f"is of the family of {base}, the base of {ours}"


def _family(name: str) -> str:
    found = _FAMILY.match(name)
    return found[0] if found else name
