"""What a name of sglang stands for in one release with the overlay over it, read from syntax trees alone."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from overlay_tools.api_check.bindings import (
    FUNCTION,
    Binding,
    Imported,
    Names,
    Typed,
    bound,
    kind_of,
    last_name,
    members,
)
from overlay_tools.errors import ContractError, WheelError
from overlay_tools.upstream.source_tree import SourceTree, parse


@dataclass(frozen=True, kw_only=True, slots=True)
class Symbol:
    """What a name stands for.

    `node`: the tree of a module, a class or a function, or the expression that gives the value; None for what is
    outside sglang or cannot be told. `module`: where it is. `instance`: it is an object of the class `node`, and with
    `above` its `super()`; with `given`, a function's first argument is given already.
    """

    module: Module | None = None
    node: ast.AST | None = None
    instance: bool = False
    above: bool = False
    given: bool = False

    @property
    def name(self) -> str:
        """Return what a person calls it."""
        return getattr(self.node, "name", self.module.name if self.module else "?")


UNKNOWN = Symbol()
_OF_MODULES = {*dir(ModuleType("")), "__file__", "__path__", "__builtins__"}


@dataclass(eq=False, kw_only=True)
class Module:
    """One file, or a folder without `__init__.py`: its `names`, and the modules that it takes all names of."""

    name: str
    path: str
    ours: bool
    tree: ast.Module
    names: Names = field(init=False)
    stars: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names, self.stars = bound(self.tree.body, self.package)

    @property
    def package(self) -> str:
        """Return the package that relative imports start from."""
        return self.name if self.path.endswith("__init__.py") else self.name.rpartition(".")[0]


@dataclass(eq=False, kw_only=True)
class Scope:
    """What code of `module` sees: the names of its function and of those around it; of a method, `this` and `owner`."""

    module: Module
    names: Names = field(default_factory=dict)
    this: Mapping[str, Symbol] = field(default_factory=dict)
    outer: Scope | None = None
    owner: Symbol | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlay:
    """The overlay's files by their path in the wheel, the attributes they read but of `super()`, and what they call."""

    trees: Mapping[str, ast.Module]
    accessed_attributes: frozenset[str]
    called_names: frozenset[str]


def read_overlay(folder: Path) -> Overlay:
    """Return the overlay's files: those under sglang/, and others that name it.

    Raises ContractError if one is no Python.
    """
    files = ((path.relative_to(folder).as_posix(), path.read_bytes()) for path in sorted(folder.rglob("*.py")))
    return _overlay(tuple((name, data) for name, data in files if name.startswith("sglang/") or b"sglang" in data))


@lru_cache(maxsize=1)
def _overlay(files: tuple[tuple[str, bytes], ...]) -> Overlay:
    try:
        trees = {name: parse(data, f"overlay/{name}") for name, data in files}
    except WheelError as error:
        raise ContractError(*error.problems, hint="Mend the file.") from None
    reads, makes = set[str](), set[str]()
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and ast.unparse(node.value) != "super()":
            reads.add(node.attr)
        if isinstance(node, ast.Call):
            makes.add(called := last_name(node.func))
            if called in ("getattr", "hasattr"):
                reads |= {str(item.value) for item in node.args[1:2] if isinstance(item, ast.Constant)}
    return Overlay(trees=trees, accessed_attributes=frozenset(reads), called_names=frozenset(makes))


class NameResolver:
    """One release with the overlay's files over it."""

    def __init__(self, sources: SourceTree, overlay: Overlay) -> None:
        self.sources = sources
        self.overlay = overlay
        self._files = frozenset(sources.names)
        self._modules: dict[str, Module | None] = {}
        self._members: dict[ast.ClassDef, Names] = {}
        self._mro: dict[ast.ClassDef, list[Symbol]] = {}
        self._active: set[object] = set()

    def module(self, name: str) -> Module | None:
        """Return a module by its full name, or None if neither the release nor the overlay has it."""
        if name not in self._modules:
            self._modules[name] = self._load(name)
        return self._modules[name]

    def _load(self, name: str) -> Module | None:
        stem = name.replace(".", "/")
        for path in (f"{stem}/__init__.py", f"{stem}.py"):
            ours = path in self.overlay.trees
            tree = self.overlay.trees[path] if ours else self.sources.tree(path) if path in self._files else None
            if tree is not None:
                return Module(name=name, path=path, ours=ours, tree=tree)
        if is_sglang(name) and any(path.startswith(f"{stem}/") for path in self._files):
            return Module(name=name, path=f"{stem}/__init__.py", ours=False, tree=ast.Module(body=[], type_ignores=[]))
        return None

    def imported(self, module: str, name: str | None) -> list[Symbol]:
        """Return what an import gives: nothing if the release and the overlay lack it."""
        found = self.module(module)
        if found is None:
            return [] if is_sglang(module) else [UNKNOWN]
        return [Symbol(module=found, node=found.tree)] if name is None else self.find(found, name)

    def find(self, module: Module, name: str) -> list[Symbol]:
        """Return what a name in a module may stand for: nothing if it has no such name."""
        if name in module.names and (module.name, name) not in self._active:  # else it is a package's import of its own
            with self._once((module.name, name)):
                # That upstream's own import of it leads nowhere is upstream's affair.
                return self._resolve(Scope(module=module), module.names[name]) or [UNKNOWN]
        for star in module.stars:
            source = self.module(star)
            if source is None and not is_sglang(star):
                return [UNKNOWN]
            if source is not None and _exports(source, name) and (found := self.find(source, name)):
                return found
        if module.path.endswith("__init__.py") and (inner := self.module(f"{module.name}.{name}")):
            return [Symbol(module=inner, node=inner.tree)]
        return [UNKNOWN] if "__getattr__" in module.names or name in _OF_MODULES else []

    def _resolve(self, scope: Scope, bindings: Iterable[Binding]) -> list[Symbol]:
        found: list[Symbol] = []
        for binding in bindings:
            if isinstance(binding, Imported):
                found += self.imported(binding.module, binding.name)
            elif isinstance(binding, Typed):
                found += self.annotated(scope, binding.annotation)
            elif isinstance(binding, (*FUNCTION, ast.ClassDef)):
                found.append(Symbol(module=scope.module, node=binding))
            elif isinstance(binding, ast.expr):
                found += self.evaluate(scope, binding) or [UNKNOWN]
            else:
                found.append(UNKNOWN)
        return found

    def evaluate(self, scope: Scope, node: ast.expr) -> list[Symbol]:
        """Return what an expression may stand for: nothing if it takes a name from where there is none."""
        if id(node) in self._active:  # a name that is defined by itself
            return [UNKNOWN]
        with self._once(id(node)):
            if isinstance(node, ast.Name):
                return self._name(scope, node.id)
            if isinstance(node, ast.Attribute):
                return self.attribute(self.evaluate(scope, node.value) or [UNKNOWN], node.attr)
            if isinstance(node, ast.Call):
                return self._call(scope, node)
            return [Symbol(module=scope.module, node=node)]

    @contextmanager
    def _once(self, what: object) -> Iterator[None]:
        self._active.add(what)
        try:
            yield
        finally:
            self._active.discard(what)

    def _name(self, scope: Scope, name: str) -> list[Symbol]:
        inner: Scope | None = scope
        while inner is not None:
            if name in inner.this:
                return [inner.this[name]]
            if name in inner.names:
                return self._resolve(inner, inner.names[name])
            inner = inner.outer
        return self.find(scope.module, name) or [UNKNOWN]  # a builtin, or a fault that ruff finds

    def _call(self, scope: Scope, node: ast.Call) -> list[Symbol]:
        called = last_name(node.func)
        if called == "super" and not node.args and scope.owner is not None:
            return [Symbol(module=scope.owner.module, node=scope.owner.node, instance=True, above=True)]
        if called == "import_module" and node.args and isinstance(node.args[0], ast.Constant):
            return self.imported(str(node.args[0].value), None)
        return [
            Symbol(module=symbol.module, node=symbol.node, instance=True)
            if isinstance(symbol.node, ast.ClassDef) and not symbol.instance
            else UNKNOWN
            for symbol in self.evaluate(scope, node.func)
        ]

    def annotated(self, scope: Scope, annotation: ast.expr) -> list[Symbol]:
        """Return objects of the class that an annotation names, where it is one class."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            try:
                annotation = ast.parse(annotation.value, mode="eval").body
            except SyntaxError:
                return [UNKNOWN]
        if not isinstance(annotation, (ast.Name, ast.Attribute)):
            return [UNKNOWN]
        return [
            Symbol(module=symbol.module, node=symbol.node, instance=True)
            if isinstance(symbol.node, ast.ClassDef)
            else UNKNOWN
            for symbol in self.evaluate(scope, annotation)
        ]

    def attribute(self, owners: Iterable[Symbol], name: str) -> list[Symbol]:
        """Return what an attribute may stand for: nothing if no owner has it, as far as its classes are sglang's."""
        found: list[Symbol] = []
        for owner in owners:
            if isinstance(owner.node, ast.Module) and owner.module is not None:
                found += self.find(owner.module, name)
            elif isinstance(owner.node, ast.ClassDef):
                found += self._member(owner, name)
            else:
                found.append(UNKNOWN)
        return found

    def _member(self, owner: Symbol, name: str) -> list[Symbol]:
        holder = next(self.defining_classes(owner, name), None)
        if holder is None or holder.module is None:
            return [UNKNOWN] if hasattr(type, name) or any(self.defining_classes(owner, "__getattr__")) else []
        found = []
        scope = Scope(module=holder.module, owner=holder)
        for symbol in self._resolve(scope, self.members(holder)[name]):
            kind = kind_of(symbol.node)
            if isinstance(symbol.node, FUNCTION) and kind == "property":
                found += self.annotated(scope, symbol.node.returns) if symbol.node.returns else [UNKNOWN]
            elif isinstance(symbol.node, FUNCTION):
                given = kind == "classmethod" or (owner.instance and kind == "method")
                found.append(Symbol(module=symbol.module, node=symbol.node, given=given))
            else:
                found.append(symbol)
        return found

    def defining_classes(self, owner: Symbol, name: str) -> Iterator[Symbol]:
        """Yield the classes of a class or an object that have an attribute of their own, as Python looks for it."""
        order = self.mro(owner) if isinstance(owner.node, ast.ClassDef) else []
        for cls in order[1:] if owner.above else order:
            if cls.node is not None and name in self.members(cls):
                yield cls

    def members(self, cls: Symbol) -> Names:
        """Return what a class has of its own."""
        node, module = cls.node, cls.module
        assert isinstance(node, ast.ClassDef)
        assert module is not None
        if node not in self._members:
            self._members[node] = members(node, module.package)
        return self._members[node]

    def mro(self, cls: Symbol) -> list[Symbol]:
        """Return a class and its bases in the order in which Python looks; UNKNOWN for a base that is not sglang's."""
        node, module = cls.node, cls.module
        assert isinstance(node, ast.ClassDef)
        assert module is not None
        if node not in self._mro:
            order = [Symbol(module=module, node=node)]
            self._mro[node] = order  # should a class derive from itself
            for base in node.bases:
                found = next(iter(self.evaluate(Scope(module=module), base)), UNKNOWN)
                order = order + (self.mro(found) if isinstance(found.node, ast.ClassDef) else [UNKNOWN])
            # A base of several comes after the last of them.
            self._mro[node] = [item for index, item in enumerate(order) if item not in order[index + 1 :]]
        return self._mro[node]


def is_sglang(module: str) -> bool:
    """Say whether a module is one that the release or the overlay must have."""
    return module.partition(".")[0] == "sglang"


def _exports(module: Module, name: str) -> bool:
    """Say whether `from module import *` takes a name along."""
    (listed, *_) = module.names.get("__all__", [None])
    if isinstance(listed, (ast.List, ast.Tuple)):
        return any(isinstance(item, ast.Constant) and item.value == name for item in listed.elts)
    return not name.startswith("_")
