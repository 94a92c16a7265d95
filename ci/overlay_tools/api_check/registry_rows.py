"""What the overlay's tables and the hooks need of a release, and the names of ours that upstream must not have."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from overlay_tools.api_check.references import Reference
from overlay_tools.api_check.resolver import NameResolver, Symbol
from overlay_tools.errors import ContractError
from overlay_tools.settings import Project

REGISTRY = "sglang/srt/overlay_registry.py"
_MODELS, _PROCESSORS = "sglang/srt/models/", "sglang/srt/multimodal/processors/"


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistryRow:
    """A model's row in the overlay's registry: its line, and the texts that it says."""

    line: int
    fields: Mapping[str, str]

    @property
    def architecture(self) -> str:
        """Return the name by which a checkpoint asks for the model."""
        return self.fields["model"].rpartition(":")[2]

    @property
    def draft(self) -> str:
        """Return the name of the draft's class, or nothing if it has none."""
        return self.fields.get("draft", "").rpartition(":")[2]


def read_registry(project: Project, resolver: NameResolver) -> list[RegistryRow]:
    """Return the rows of MODELS in the overlay's registry, none if it has no registry.

    Raises ContractError on a row that does not say literally what it says.
    """
    rows, faults = [], []
    for item in _table(resolver.overlay.trees.get(REGISTRY), "MODELS"):
        said = {word.arg: word.value for word in item.keywords} if isinstance(item, ast.Call) else {}
        literal = {name: value.value for name, value in said.items() if isinstance(value, ast.Constant)}
        fields = {name: value for name, value in literal.items() if name and isinstance(value, str)}
        if len(literal) < len(said) or ":" not in fields.get("model", ""):
            faults.append(f"{project.overlay / REGISTRY}:{item.lineno}: this row of MODELS cannot be read.")
        rows.append(RegistryRow(line=item.lineno, fields=fields))
    if faults:
        raise ContractError(*faults, hint="Write it as OverlayModel(model='module:Class', ...), all of it literal.")
    return rows


def named_class(resolver: NameResolver, reference: str) -> Symbol | None:
    """Return the class that `module:name` points at, or None if there is none."""
    module, _, name = reference.partition(":")
    return next((symbol for symbol in resolver.imported(module, name) if isinstance(symbol.node, ast.ClassDef)), None)


def model_type(resolver: NameResolver, cls: Symbol) -> str:
    """Return the model type of a configuration class, or nothing if it has none."""
    held = (
        value
        for holder in resolver.defining_classes(cls, "model_type")
        for value in resolver.members(holder)["model_type"]
    )
    return next((str(value.value) for value in held if isinstance(value, ast.Constant)), "")


def registry_references(project: Project, resolver: NameResolver) -> Iterator[Reference]:
    """Yield what each row of the registry names, of the overlay and of the release."""
    for row in read_registry(project, resolver):
        where, own = f"overlay/{REGISTRY}:{row.line}", row.architecture
        for field in ("model", "draft", "config", "on_install"):
            if reference := row.fields.get(field):
                problem = _lacking(resolver, reference, listed=field in ("model", "draft"))
                yield Reference(where=where, kind="row", what=f"{own}: {field} {reference}", problem=problem)
        if base := row.fields.get("base"):
            models = [path for path in naming(project, resolver, {base}) if path.startswith(_MODELS)]
            listed = any(base in _entries(resolver.sources.tree(path)) for path in models)
            problem = "" if listed else f"upstream has no model {base}"
            yield Reference(where=where, kind="row", what=f"{own}: base {base}", problem=problem)


def name_collisions(project: Project, resolver: NameResolver) -> Iterator[Reference]:
    """Yield the names of the overlay's own: upstream would load its one of such a name beside ours."""
    owned = _owned(project, resolver)
    files = naming(project, resolver, {name for _, _, name in owned})
    nodes = [(path, node) for path in files for node in ast.walk(resolver.sources.tree(path) or ast.Pass())]
    for where, kind, name in owned:
        taken = (f"{path}:{getattr(node, 'lineno', 0)}" for path, node in nodes if _takes(kind, name, path, node))
        place = next(taken, "")
        yield Reference(
            where=where, kind="collision", what=f"{kind} {name}", problem=place and f"upstream has one: {place}"
        )


def base_names(project: Project, resolver: NameResolver) -> set[str]:
    """Return what names a base: its architecture, its draft's, its configuration class and its model type."""
    names = set()
    for row in (row for row in read_registry(project, resolver) if row.fields.get("base")):
        draft, config = (_base(resolver, row.fields.get(field, "")) for field in ("draft", "config"))
        names |= {row.fields["base"], draft.name if draft else "", config.name if config else ""}
        names.add(model_type(resolver, config) if config else "")
    return names - {""}


def naming(project: Project, resolver: NameResolver, names: Collection[str]) -> list[str]:
    """Return upstream's files that hold one of some names of rows or of their bases."""
    every = {name for _, _, name in _owned(project, resolver)} | base_names(project, resolver)
    held = resolver.sources.holding(*every) if names else []  # one search for all that is ever asked for
    words = [name.encode() for name in names]
    held = [path for path in held if any(word in (resolver.sources.read(path) or b"") for word in words)]
    return [path for path in held if path not in resolver.overlay.trees]


def _owned(project: Project, resolver: NameResolver) -> list[tuple[str, str, str]]:
    """Return where the overlay gives something a name of its own, of which kind it is, and the name."""
    owned = []
    for row in read_registry(project, resolver):
        where = f"overlay/{REGISTRY}:{row.line}"
        owned += [(where, "architecture", name) for name in (row.architecture, row.draft) if name]
        config = named_class(resolver, row.fields.get("config", ""))
        owned += [(where, "model_type", kind) for kind in ([model_type(resolver, config)] if config else []) if kind]
    for path, tree in resolver.overlay.trees.items():
        for node in tree.body if path.startswith(_PROCESSORS) else []:
            owned += [(f"overlay/{path}:{node.lineno}", "processor", name) for name in _processed(node)]
    return owned


def _base(resolver: NameResolver, reference: str) -> Symbol | None:
    """Return the class of upstream's that a class of ours derives from first."""
    ours = named_class(resolver, reference)
    bases = resolver.mro(ours) if ours else []
    return next((base for base in bases if base.module is not None and not base.module.ours), None)


def _takes(kind: str, name: str, path: str, node: ast.AST) -> bool:
    """Say whether a node of upstream's makes a name its own."""
    if kind == "model_type":
        value = getattr(node, "value", None)
        return _assigns(node, "model_type") and isinstance(value, ast.Constant) and value.value == name
    if kind == "processor":
        return path.startswith(_PROCESSORS) and name in _processed(node)
    defined = isinstance(node, ast.ClassDef) and node.name == name and path.startswith(_MODELS)
    return defined or (isinstance(node, ast.Constant) and node.value == name)


def _table(tree: ast.Module | None, name: str) -> list[ast.expr]:
    """Return the items of a tuple or list that a module has under a name."""
    for node in tree.body if tree else []:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if any(isinstance(item, ast.Name) and item.id == name for item in targets):
            return value.elts if isinstance(value, (ast.Tuple, ast.List)) else [value] if value else []
    return []


def _lacking(resolver: NameResolver, reference: str, *, listed: bool) -> str:
    module, _, name = reference.partition(":")
    found = resolver.module(module)
    if found is None or not found.ours:
        return f"the overlay has no module {module}"
    if name not in found.names:
        return f"{module} has no `{name}`"
    return f"{module} does not list it in EntryClass" if listed and name not in _entries(found.tree) else ""


def _entries(tree: ast.Module | None) -> set[str]:
    """Return the names that a file of models lists as its EntryClass."""
    nodes = [node for node in (tree.body if tree else []) if _assigns(node, "EntryClass")]
    return {item.id for node in nodes for item in ast.walk(node) if isinstance(item, ast.Name)}


def _assigns(node: ast.AST, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return getattr(node, "value", None) is not None and name in (getattr(item, "id", None) for item in targets)


def _processed(node: ast.AST) -> list[str]:
    """Return the name of a processor and those of the models that it serves."""
    if not isinstance(node, ast.ClassDef):
        return []
    served = [item for item in node.body if _assigns(item, "models")]
    models = [name.id for item in served for name in ast.walk(item) if isinstance(name, ast.Name)]
    return [node.name, *(name for name in models if name != "models")]
