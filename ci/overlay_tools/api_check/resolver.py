"""What a name of sglang stands for in one release with the overlay over it, read from syntax trees alone."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import partial
from types import ModuleType

from overlay_tools.api_check.bindings import (
    FUNCTION,
    Binding,
    Bindings,
    Declared,
    Imported,
    collect_members,
    last_name,
    member_kind,
)
from overlay_tools.api_check.definitions import bind_definitions, cut_module
from overlay_tools.api_check.foreign_members import OF_ENUM, OF_NN_MODULE
from overlay_tools.api_check.overlay_code import OverlayCode
from overlay_tools.api_check.symbols import UNKNOWN, Module, Scope, Symbol, is_sglang
from overlay_tools.upstream.source_tree import SourceTree

_MOST_STEPS = 1000  # for one expression: names that are bound many times, each from the others, lead to any number
_OF_EVERY_MODULE = {*dir(ModuleType("")), "__file__", "__path__", "__builtins__"}


class NameResolver:
    """Resolves names in one release with the overlay's files over it.

    What may be one of several things resolves to all of them, and what cannot be told to UNKNOWN. An empty list means
    that there is no such thing.
    """

    def __init__(self, sources: SourceTree, overlay: OverlayCode) -> None:
        self.sources = sources
        self.overlay = overlay
        self._paths = frozenset(sources.names)
        self._modules: dict[str, Module | None] = {}
        self._mro: dict[tuple[Module, ast.ClassDef], list[Symbol]] = {}  # files that are alike share their nodes
        self._resolving: set[object] = set()  # what is being resolved, so that a circle is noticed
        self._steps = 0

    def module(self, name: str) -> Module | None:
        """Return a module by its full name, or None if neither the release nor the overlay has it."""
        if name not in self._modules:
            self._modules[name] = self._load(name)
        return self._modules[name]

    def _load(self, name: str) -> Module | None:
        stem = name.replace(".", "/")
        for path in (f"{stem}/__init__.py", f"{stem}.py"):
            if (ours := self.overlay.files.get(path)) is not None:
                return Module(name=name, path=path, in_overlay=True, tree=ours)
            if path in self._paths:
                return self._load_upstream(name, path)
        if is_sglang(name) and any(path.startswith(f"{stem}/") for path in self._paths):
            empty = ast.Module(body=[], type_ignores=[])
            return Module(name=name, path=f"{stem}/__init__.py", in_overlay=False, tree=empty)
        return None

    def _load_upstream(self, name: str, path: str) -> Module | None:
        """Return a module of the release, its definitions unparsed where no hook changes it."""
        # What a hook adds is looked at in all of the file.
        sources = self.sources  # what a module keeps is not to keep this resolver in a circle with it
        cut = None if sources.is_changed(path) else cut_module(sources.read(path) or b"")
        if cut is None:
            tree = sources.tree(path)
            return None if tree is None else Module(name=name, path=path, in_overlay=False, tree=tree)
        definitions = partial(bind_definitions, cut, whole=lambda: sources.tree(path) or cut.rest)
        return Module(name=name, path=path, in_overlay=False, tree=cut.rest, definitions=definitions)

    def resolve_import(self, module: str, name: str | None) -> list[Symbol]:
        """Return what an import of a module, or of a name in it, gives."""
        found = self.module(module)
        if found is None:
            return [] if is_sglang(module) else [UNKNOWN]
        return [Symbol(module=found, node=found.tree)] if name is None else self.resolve_name(found, name)

    def has(self, module: str, name: str) -> bool:
        """Tell whether an import of a name in a module gives something, without parsing what it is."""
        found = self.module(module)
        return (found is not None and name in found.bindings) or bool(self.resolve_import(module, name))

    def resolve_name(self, module: Module, name: str) -> list[Symbol]:
        """Return what a name of a module stands for."""
        # While it is being resolved, the name is what a package imports from a module in itself.
        if name in module.bindings and (module.name, name) not in self._resolving:
            self._resolving.add((module.name, name))
            try:
                # If upstream's own import of the name leads nowhere, that is for upstream to mend.
                return self._resolve_bindings(Scope(module=module), module.bindings[name]) or [UNKNOWN]
            finally:
                self._resolving.discard((module.name, name))
        for star in module.star_imports:
            source = self.module(star)
            if source is None and not is_sglang(star):
                return [UNKNOWN]
            if source is not None and source.exports(name) and (found := self.resolve_name(source, name)):
                return found
        if module.path.endswith("__init__.py") and (inner := self.module(f"{module.name}.{name}")):
            return [Symbol(module=inner, node=inner.tree)]
        return [UNKNOWN] if "__getattr__" in module.bindings or name in _OF_EVERY_MODULE else []

    def _resolve_bindings(self, scope: Scope, bindings: Iterable[Binding]) -> list[Symbol]:
        found: list[Symbol] = []
        for binding in bindings:
            if isinstance(binding, Imported):
                found += self.resolve_import(binding.module, binding.name)
            elif isinstance(binding, Declared):
                found += self._infer_annotation(scope, binding.annotation)
            elif isinstance(binding, (*FUNCTION, ast.ClassDef)):
                found.append(Symbol(module=scope.module, node=binding))
            elif isinstance(binding, ast.expr):
                found += self.infer(scope, binding) or [UNKNOWN]
            else:
                found.append(UNKNOWN)
        return found

    def infer(self, scope: Scope, node: ast.expr) -> list[Symbol]:
        """Return what an expression stands for."""
        self._steps = self._steps + 1 if self._resolving else 0
        key = scope.module, id(node)
        if key in self._resolving or self._steps > _MOST_STEPS:  # the name is defined by itself, or by too much
            return [UNKNOWN]
        self._resolving.add(key)
        try:
            if isinstance(node, ast.Name):
                return self._infer_name(scope, node.id)
            if isinstance(node, ast.Attribute):
                return self.resolve_attribute(self.infer(scope, node.value) or [UNKNOWN], node.attr)
            if isinstance(node, ast.Call):
                return self._infer_call(scope, node)
            return [Symbol(module=scope.module, node=node)]
        finally:
            self._resolving.discard(key)

    def _infer_name(self, scope: Scope, name: str) -> list[Symbol]:
        inner: Scope | None = scope
        while inner is not None:
            if name in inner.receiver:
                return [inner.receiver[name]]
            if name in inner.bindings:
                return self._resolve_bindings(inner, inner.bindings[name])
            inner = inner.parent
        return self.resolve_name(scope.module, name) or [UNKNOWN]  # a builtin, or an error that ruff reports

    def _infer_call(self, scope: Scope, node: ast.Call) -> list[Symbol]:
        called, cls = last_name(node.func), scope.enclosing_class
        if called == "super" and not node.args and cls is not None:
            return [Symbol(module=cls.module, node=cls.node, is_instance=True, via_super=True)]
        if called == "import_module" and node.args and isinstance(node.args[0], ast.Constant):
            return self.resolve_import(str(node.args[0].value), None)
        return [
            Symbol(module=symbol.module, node=symbol.node, is_instance=True)
            if isinstance(symbol.node, ast.ClassDef) and not symbol.is_instance
            else UNKNOWN
            for symbol in self.infer(scope, node.func)
        ]

    def _infer_annotation(self, scope: Scope, annotation: ast.expr) -> list[Symbol]:
        """Return an object of the class that an annotation names, where it is one class."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            try:
                annotation = ast.parse(annotation.value, mode="eval").body
            except SyntaxError:
                return [UNKNOWN]
        if not isinstance(annotation, (ast.Name, ast.Attribute)):
            return [UNKNOWN]
        return [
            Symbol(module=symbol.module, node=symbol.node, is_instance=True)
            if isinstance(symbol.node, ast.ClassDef)
            else UNKNOWN
            for symbol in self.infer(scope, annotation)
        ]

    def resolve_attribute(self, owners: Iterable[Symbol], name: str) -> list[Symbol]:
        """Return what an attribute of one of several owners stands for."""
        found: list[Symbol] = []
        for owner in owners:
            if isinstance(owner.node, ast.Module) and owner.module is not None:
                found += self.resolve_name(owner.module, name)
            elif isinstance(owner.node, ast.ClassDef):
                found += self._resolve_member(owner, name)
            else:
                found.append(UNKNOWN)
        return found

    def _resolve_member(self, owner: Symbol, name: str) -> list[Symbol]:
        cls = next(self.defining_classes(owner, name), None)
        if cls is None or cls.module is None:
            given = hasattr(type, name) or self.foreign_has(owner, name)
            return [UNKNOWN] if given or any(self.defining_classes(owner, "__getattr__")) else []
        found = []
        scope = Scope(module=cls.module, enclosing_class=cls)
        for symbol in self._resolve_bindings(scope, self.members(cls)[name]):
            kind = member_kind(symbol.node)
            if isinstance(symbol.node, FUNCTION) and kind == "property":
                found += self._infer_annotation(scope, symbol.node.returns) if symbol.node.returns else [UNKNOWN]
            elif isinstance(symbol.node, FUNCTION):
                is_bound = kind == "classmethod" or (owner.is_instance and kind == "method")
                found.append(Symbol(module=symbol.module, node=symbol.node, is_bound=is_bound))
            else:
                found.append(symbol)
        return found

    def defining_classes(self, owner: Symbol, name: str) -> Iterator[Symbol]:
        """Yield the classes that define an attribute of a class or an object, in the order in which Python looks."""
        order = self.mro(owner) if isinstance(owner.node, ast.ClassDef) else []
        for cls in order[1:] if owner.via_super else order:
            if cls.node is not None and name in self.members(cls):
                yield cls

    def foreign_has(self, owner: Symbol, name: str) -> bool:
        """Tell whether a base outside sglang gives an attribute to a class or an object: torch.nn.Module, or Enum."""
        order = self.mro(owner) if isinstance(owner.node, ast.ClassDef) else []
        bases = [last_name(base) for cls in order if isinstance(cls.node, ast.ClassDef) for base in cls.node.bases]
        is_enum = any(base.endswith(("Enum", "Flag")) for base in bases)
        return UNKNOWN in order and name in (OF_ENUM if is_enum else OF_NN_MODULE)

    def members(self, cls: Symbol) -> Bindings:
        """Return the attributes that a class itself defines."""
        node, module = cls.node, cls.module
        assert isinstance(node, ast.ClassDef)
        assert module is not None
        return collect_members(node, module.package)

    def definitions(self, cls: Symbol, name: str) -> list[Binding]:
        """Return what may define an attribute of a class: its functions, or else its values."""
        found: list[Binding] = []
        for binding in self.members(cls)[name]:
            if isinstance(binding, (ast.Name, ast.Attribute)) and cls.module is not None:  # another name of something
                symbols = self.infer(Scope(module=cls.module, bindings=self.members(cls)), binding)
                found += [symbol.node for symbol in symbols if symbol != UNKNOWN]
            else:
                found.append(binding)
        return [item for item in found if isinstance(item, FUNCTION)] or found

    def mro(self, cls: Symbol) -> list[Symbol]:
        """Return a class and its bases in the order in which Python looks; UNKNOWN for a base outside sglang."""
        node, module = cls.node, cls.module
        assert isinstance(node, ast.ClassDef)
        assert module is not None
        key = module, node
        if key not in self._mro:
            order = [Symbol(module=module, node=node)]
            self._mro[key] = order  # in case a class derives from itself
            for base in node.bases:
                found = next(iter(self.infer(Scope(module=module), base)), UNKNOWN)
                order = order + (self.mro(found) if isinstance(found.node, ast.ClassDef) else [UNKNOWN])
            # A base that several classes share comes after the last of them.
            self._mro[key] = [item for index, item in enumerate(order) if item not in order[index + 1 :]]
        return self._mro[key]
