"""What statements bind: the names of a module, a class or a function, and the attributes that methods set."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """A name bound by an import: the module if `name` is None, or else the name in it."""

    module: str
    name: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
    """A name of which only the annotation is known."""

    annotation: ast.expr


Binding = ast.AST | Imported | Declared | None
"""A function, a class or the expression of a value; None where nothing can be told."""
Bindings = dict[str, list[Binding]]
"""What each name is bound to: one of several, where a condition decides."""


def collect_bindings(body: Iterable[ast.stmt], package: str) -> tuple[Bindings, list[str]]:
    """Return what the statements of a module, class or function in `package` bind, and the modules they star-import.

    A later binding replaces an earlier one, unless it is under a condition: then the name may be either.
    """
    bindings: Bindings = {}
    star_imports: list[str] = []
    for name, binding, conditional in _walk_bindings(body, package, conditional=False):
        if isinstance(binding, Imported) and binding.name == "*":
            star_imports.append(binding.module)
        elif conditional:
            bindings.setdefault(name, []).append(binding)
        else:
            bindings[name] = [binding]
    return bindings, star_imports


@lru_cache(maxsize=1024)
def collect_locals(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, package: str) -> Bindings:
    """Return what a function binds: its parameters, and the names in its body."""
    arguments = function.args
    parameters: Bindings = {
        item.arg: [Declared(annotation=item.annotation) if item.annotation else None]
        for item in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    }
    parameters |= {item.arg: [None] for item in (arguments.vararg, arguments.kwarg) if item}
    inner: Bindings = {}
    if not isinstance(function, ast.Lambda):
        inner, _ = collect_bindings(function.body, package)
    for item in ast.walk(function):  # names bound within expressions, and those of caught exceptions
        name = item.id if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store) else None
        name = item.name if isinstance(item, ast.ExceptHandler) else name
        if name is not None:
            inner.setdefault(name, [None])
    return parameters | {name: parameters.get(name, []) + bindings for name, bindings in inner.items()}


@lru_cache(maxsize=4096)
def collect_members(cls: ast.ClassDef, package: str) -> Bindings:
    """Return the attributes that a class itself defines: those of its body, and those its methods set on `self`."""
    members, _ = collect_bindings(cls.body, package)
    for method in cls.body:
        if isinstance(method, FUNCTION) and method.args.args:
            for name, binding in _instance_attributes(method.body, method.args.args[0].arg):
                members.setdefault(name, []).append(binding)
    return members


@lru_cache(maxsize=4096)  # releases share the trees of files that they share
def collect_module(tree: ast.Module, package: str) -> tuple[Bindings, list[str]]:
    """Return what a module in `package` binds, and the modules that it star-imports, as `collect_bindings` does."""
    return collect_bindings(tree.body, package)


def absolute_module(node: ast.ImportFrom, package: str) -> str:
    """Return the full name of the module that a `from` import in `package` names."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def walk_imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports in a module or a statement, at any depth; expressions, most of all nodes, hold none."""
    for block in _blocks(node):
        for item in block:
            if isinstance(item, (ast.Import, ast.ImportFrom)):
                yield item
            else:
                yield from walk_imports(item)


def member_kind(node: object) -> str:
    """Return what a member of a class is: a `method`, `classmethod`, `staticmethod`, `property` or `value`."""
    if not isinstance(node, FUNCTION):
        return "value"
    decorators = decorator_names(node)
    if decorators & {"property", "cached_property"}:
        return "property"
    return next((kind for kind in ("classmethod", "staticmethod") if kind in decorators), "method")


def decorator_names(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Return the last names of the decorators of a function or a class."""
    return {last_name(item.func if isinstance(item, ast.Call) else item) for item in node.decorator_list}


def last_name(node: ast.expr) -> str:
    """Return the name that an expression ends with, as `c` of `a.b.c`, or an empty text if there is none."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _walk_bindings(body: Iterable[ast.stmt], package: str, *, conditional: bool) -> Iterator[tuple[str, Binding, bool]]:
    """Yield each name that statements bind, to what, and whether under a condition."""
    for node in body:
        for name, binding in _statement_bindings(node, package):
            yield name, binding, conditional
        if isinstance(node, (*FUNCTION, ast.ClassDef)):
            continue
        if isinstance(node, ast.If) and last_name(node.test) == "TYPE_CHECKING":
            blocks, unsure = [node.orelse], conditional
        else:
            blocks, unsure = list(_blocks(node)), conditional or not isinstance(node, (ast.With, ast.AsyncWith))
        for block in blocks:
            yield from _walk_bindings(block, package, conditional=unsure)


def _statement_bindings(node: ast.stmt, package: str) -> Iterator[tuple[str, Binding]]:
    """Yield what one statement binds by itself, without the statements inside it."""
    if isinstance(node, (*FUNCTION, ast.ClassDef)):
        if not decorator_names(node) & {"overload", "setter", "deleter"}:
            yield node.name, node
    elif isinstance(node, ast.Import):
        for alias in node.names:
            top = alias.name.partition(".")[0]
            yield alias.asname or top, Imported(module=alias.name if alias.asname else top, name=None)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            yield alias.asname or alias.name, Imported(module=absolute_module(node, package), name=alias.name)
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            yield from _assigned(target, node.value)
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id, Declared(annotation=node.annotation)
    else:
        yield from _assigned(getattr(node, "target", None), None)  # of a loop
        for item in getattr(node, "items", ()):  # of `with`
            yield from _assigned(item.optional_vars, None)


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """Yield the lists of statements in a statement."""
    for name in ("body", "orelse", "finalbody"):
        if isinstance(block := getattr(node, name, None), list):
            yield block
    for clause in [*getattr(node, "handlers", ()), *getattr(node, "cases", ())]:
        yield clause.body


def _assigned(target: ast.expr | None, value: ast.expr | None) -> Iterator[tuple[str, ast.expr | None]]:
    """Yield the names in the target of an assignment, each with its value where that can be told."""
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, (ast.Tuple, ast.List)):
        alike = isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts)
        for index, element in enumerate(target.elts):
            yield from _assigned(element, value.elts[index] if alike else None)  # type: ignore[union-attr]
    elif isinstance(target, ast.Starred):
        yield from _assigned(target.value, None)


def _instance_attributes(body: Iterable[ast.stmt], receiver: str) -> Iterator[tuple[str, Binding]]:
    """Yield the attributes that statements set on an object, which is `self` as a rule."""
    for node in body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                for element in target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]:
                    if _is_attribute_of(element, receiver):
                        made = element is target and isinstance(node.value, ast.Call)  # other values may be arguments
                        yield element.attr, node.value if made else None  # type: ignore[attr-defined]
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign)) and _is_attribute_of(node.target, receiver):
            yield node.target.attr, None  # type: ignore[union-attr]
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and node.value.args:
            (name, *_), called = node.value.args, node.value.func
            registers = _is_attribute_of(called, receiver) and called.attr.startswith("register_")  # type: ignore[attr-defined]
            if registers and isinstance(name, ast.Constant):
                yield str(name.value), None
        else:
            for block in _blocks(node):
                yield from _instance_attributes(block, receiver)


def _is_attribute_of(node: ast.AST, receiver: str) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == receiver
