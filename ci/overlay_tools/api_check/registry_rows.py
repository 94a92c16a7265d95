"""What the rows of the overlay's registry name, in the overlay and in a release, and names that both would have."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from overlay_tools.api_check.bindings import Imported, last_name
from overlay_tools.api_check.hook_code import AppliedHooks
from overlay_tools.api_check.model_types import model_type_of
from overlay_tools.api_check.references import Reference
from overlay_tools.api_check.registered_names import (
    MODELS,
    REGISTERING,
    SERVING,
    entry_classes,
    places_of,
    registered_names,
)
from overlay_tools.api_check.resolver import NameResolver
from overlay_tools.api_check.symbols import Symbol
from overlay_tools.errors import ContractError
from overlay_tools.settings import Project
from overlay_tools.upstream.source_tree import module_name, parse

ROWS = "sglang/srt/overlay_models/"
_PARSERS = {
    "reasoning_parser": ("sglang/srt/parser/reasoning_parser.py", "DetectorMap"),
    "tool_call_parser": ("sglang/srt/function_call/function_call_parser.py", "ToolCallParserEnum"),
}
_ARGUMENTS = ("sglang/srt/server_args.py", "sglang/srt/arg_groups/fields/")
_GENERAL_CONFIGS = {"PretrainedConfig", "PreTrainedConfig"}  # of no model


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistryRow:
    """A model's row: where it is, its keywords that are text, and the names of the server's arguments that it sets."""

    where: str
    fields: Mapping[str, str]
    arguments: Collection[str] = ()

    @property
    def architecture(self) -> str:
        """Return the name by which a checkpoint asks for the model."""
        return self.fields["model"].rpartition(":")[2]

    @property
    def draft(self) -> str:
        """Return the name of the draft's class, or an empty text if it has none."""
        return self.fields.get("draft", "").rpartition(":")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseNames:
    """The names by which upstream may mention a base.

    `architectures`: of bases and of their drafts; `drafts`: of these alone; `classes`: of models, drafts and
    configurations; `model_types`: of the bases' configurations.
    """

    architectures: frozenset[str]
    drafts: frozenset[str]
    classes: frozenset[str]
    model_types: frozenset[str]

    @property
    def every(self) -> frozenset[str]:
        """Return all of them."""
        return self.classes | self.model_types


def read_registry(resolver: NameResolver) -> list[RegistryRow]:
    """Return the rows that the overlay's files declare, those that the release takes.

    Raises ContractError on a file without a row, and on a row whose values are not literal.
    """
    rows, faults = [], []
    for path, tree in sorted(resolver.overlay.files.items()):
        if not path.startswith(ROWS) or path == f"{ROWS}__init__.py":
            continue
        item = next(iter(table_rows(tree, "ROW")), None)
        where = f"overlay/{path}:{item.lineno if item else 1}"
        try:
            values = _literals(item)
        except (TypeError, ValueError):
            faults.append(f"{where}: its ROW cannot be read.")
            continue
        fields = {name: value for name, value in values.items() if isinstance(value, str)}
        rows.append(RegistryRow(where=where, fields=fields, arguments=tuple(values.get("arguments", ()))))
    if faults:
        raise ContractError(*faults, hint="Write ROW = OverlayModel(model='module:Class', ...), all of it literal.")
    return rows


def _literals(item: ast.expr | None) -> dict[str, Any]:
    """Return the keywords of a row. Raises TypeError or ValueError if it is no such call, or not literal."""
    if not isinstance(item, ast.Call) or item.args:
        raise TypeError
    values = {str(word.arg): ast.literal_eval(word.value) for word in item.keywords}
    if ":" not in values.get("model", ""):
        raise ValueError
    return values


def registry_references(resolver: NameResolver) -> Iterator[Reference]:
    """Yield what each row names, of the overlay and of the release."""
    for row in read_registry(resolver):
        for what, problem in _named(row, resolver):
            yield Reference(where=row.where, kind="row", what=f"{row.architecture}: {what}", problem=problem)


def _named(row: RegistryRow, resolver: NameResolver) -> Iterator[tuple[str, str]]:
    """Yield what a row names, each with what is wrong with it."""
    for field in ("model", "draft", "config", "settle", "chat_template", "on_install", *_PARSERS):
        if ":" in (reference := row.fields.get(field, "")):
            yield (
                f"{field} {reference}",
                _reference_problem(resolver, reference, is_model=field in ("model", "draft")),
            )
    if base := row.fields.get("base"):
        files = [path for path in files_naming(resolver, {base}) if path.startswith(MODELS)]
        modules = (resolver.module(module_name(path)) for path in files)
        listed = any(base in entry_classes(module.tree) for module in modules if module)
        yield f"base {base}", "" if listed else f"upstream has no model {base}"
    for field, (path, table) in _PARSERS.items():
        name = row.fields.get(field, ":")
        if ":" not in name:
            known = name in _keys_of(resolver.sources.tree(path), table)
            yield f"{field} {name}", "" if known else f"upstream has no {field.replace('_', ' ')} {name}"
    for name in row.arguments:
        known = any(name in _annotated(tree) for tree in _argument_trees(resolver))
        yield f"arguments {name}", "" if known else f"upstream's server has no argument {name}"


def _keys_of(tree: ast.Module | None, table: str) -> set[str]:
    """Return the keys of the dictionary that a class of a module assigns to a name."""
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Dict):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == table for target in targets):
                return {str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)}
    return set()


def _argument_trees(resolver: NameResolver) -> Iterator[ast.Module]:
    for path in resolver.sources.names:
        fits = path == _ARGUMENTS[0] or (path.startswith(_ARGUMENTS[1]) and path.endswith(".py"))
        if fits and (tree := resolver.sources.tree(path)) is not None:
            yield tree


def _annotated(tree: ast.Module) -> set[str]:
    """Return the names that the classes of a module annotate."""
    return {
        node.target.id
        for cls in tree.body
        if isinstance(cls, ast.ClassDef)
        for node in cls.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def name_collisions(project: Project, resolver: NameResolver, hooks: AppliedHooks) -> Iterator[Reference]:
    """Yield each name that the overlay or a hook brings, with the place where upstream uses it too.

    Parameters: `resolver`, of the release without hooks.
    """
    names = [*_overlay_names(resolver), *_hook_names(project, resolver, hooks)]
    wanted = {(kind, name) for _, kind, name in names}
    files = files_naming(resolver, {name for _, name in wanted})
    places = places_of(resolver.sources, wanted, files)
    left = places_of(resolver.sources.changed(hooks.files), wanted, [path for path in files if path in hooks.files])
    for where, kind, name in names:
        kept = {path for path, _ in left.get((kind, name), ())}
        found = (place for place in places.get((kind, name), ()) if place[0] not in hooks.files or place[0] in kept)
        place = next((f"{path}:{line}" for path, line in found), "")
        problem = f"upstream has one: {place}" if place else ""
        yield Reference(where=where, kind="collision", what=f"{kind} {name}", problem=problem)


def base_names(resolver: NameResolver) -> BaseNames:
    """Return the names by which upstream may mention the bases of all rows."""
    architectures, drafts, configs, model_types = set[str](), set[str](), set[str](), set[str]()
    for row in (row for row in read_registry(resolver) if row.fields.get("base")):
        architectures.add(row.fields["base"])
        if draft := _upstream_base(resolver, row.fields.get("draft", "")):
            drafts.add(draft.name)
        reference = row.fields.get("config", "")
        if config := _upstream_base(resolver, reference):
            configs.add(config.name)
            model_types.add(_model_type(resolver, config))
        elif name := _transformers_base(resolver, reference):
            configs.add(name)
            model_types.add(model_type_of(name))
    return BaseNames(
        architectures=frozenset(architectures | drafts),
        drafts=frozenset(drafts),
        classes=frozenset(architectures | drafts | configs),
        model_types=frozenset(model_types - {""}),
    )


def files_naming(resolver: NameResolver, names: Collection[str]) -> list[str]:
    """Return upstream's files that serve and hold one of some `names`, which are the overlay's or a base's."""
    if not names:
        return []
    every = {name for _, _, name in _overlay_names(resolver)} | base_names(resolver).every
    found = resolver.sources.words_in({*every, *names}, SERVING)  # one search for all that are ever asked for
    return [path for path, held in found if not held.isdisjoint(names) and path not in resolver.overlay.files]


def table_rows(tree: ast.Module | None, name: str) -> list[ast.expr]:
    """Return the items of the tuple or list that a module assigns to a name."""
    for node in tree.body if tree else []:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if any(isinstance(item, ast.Name) and item.id == name for item in targets):
            return value.elts if isinstance(value, (ast.Tuple, ast.List)) else [value] if value else []
    return []


def _overlay_names(resolver: NameResolver) -> list[tuple[str, str, str]]:
    """Return where the overlay gives something a name of its own, of which kind it is, and the name."""
    names = []
    for row in read_registry(resolver):
        where = row.where
        names += [(where, "architecture", name) for name in (row.architecture, row.draft) if name]
        config = _find_class(resolver, row.fields.get("config", ""))
        model_type = _model_type(resolver, config) if config else ""
        names += [(where, "model_type", model_type)] if model_type else []
    known = {(kind, name) for _, kind, name in names}
    for path, tree in resolver.overlay.files.items():
        brought = ((line, kind, name) for line, kind, name in registered_names(path, tree) if (kind, name) not in known)
        names += [(f"overlay/{path}:{line}", kind, name) for line, kind, name in brought]
    return names


def _hook_names(project: Project, resolver: NameResolver, hooks: AppliedHooks) -> list[tuple[str, str, str]]:
    """Return the same of files as the hooks leave them, with the last hook that changes each."""
    by_file = {name: applied.patch.path for applied in hooks.patches for name in applied.after}
    names = []
    for path, data in hooks.files.items():
        if data is not None and path.endswith(".py") and path.startswith(REGISTERING):
            before = {(kind, name) for _, kind, name in registered_names(path, resolver.sources.tree(path))}
            after = {(kind, name) for _, kind, name in registered_names(path, parse(data, path))}
            where = by_file[path].relative_to(project.root).as_posix()
            names += [(where, kind, name) for kind, name in sorted(after - before)]
    return names


def _find_class(resolver: NameResolver, reference: str) -> Symbol | None:
    """Return the class that `module:name` refers to, or None if there is none."""
    module, _, name = reference.partition(":")
    found = resolver.resolve_import(module, name)
    return next((symbol for symbol in found if isinstance(symbol.node, ast.ClassDef)), None)


def _model_type(resolver: NameResolver, cls: Symbol) -> str:
    """Return the model type of a configuration class, or an empty text if it has none."""
    values = (
        value
        for defining in resolver.defining_classes(cls, "model_type")
        for value in resolver.members(defining)["model_type"]
    )
    return next((str(value.value) for value in values if isinstance(value, ast.Constant)), "")


def _upstream_base(resolver: NameResolver, reference: str) -> Symbol | None:
    """Return the first class of upstream's in the order of bases of one of the overlay's classes."""
    cls = _find_class(resolver, reference)
    bases = resolver.mro(cls) if cls else []
    return next((base for base in bases if base.module is not None and not base.module.in_overlay), None)


def _transformers_base(resolver: NameResolver, reference: str) -> str:
    """Return the configuration class of Transformers' that one of the overlay's derives from, or an empty text."""
    cls = _find_class(resolver, reference)
    for item in resolver.mro(cls) if cls else []:
        for base in item.node.bases if isinstance(item.node, ast.ClassDef) else []:
            for bound in item.module.bindings.get(last_name(base), []) if item.module else []:
                if isinstance(bound, Imported) and bound.module.partition(".")[0] == "transformers" and bound.name:
                    return "" if bound.name in _GENERAL_CONFIGS else bound.name
    return ""


def _reference_problem(resolver: NameResolver, reference: str, *, is_model: bool) -> str:
    """Return why `module:name` does not refer to something of the overlay, or to one of its models."""
    module, _, name = reference.partition(":")
    found = resolver.module(module)
    if found is None or not found.in_overlay:
        return f"the overlay has no module {module}"
    if name not in found.bindings:
        return f"{module} has no `{name}`"
    return f"{module} does not list it in EntryClass" if is_model and name not in entry_classes(found.tree) else ""
