"""What statements bind: the names of a module, a class or a function, and the attributes that methods set."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """A name bound by an import: of a module, or of a name in it."""

    module: str
    name: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Typed:
    """A name whose annotation is all that is known of it."""

    annotation: ast.expr


Binding = ast.AST | Imported | Typed | None
"""A function, a class or the expression of a value; None where nothing can be told."""
Names = dict[str, list[Binding]]
"""What each name is bound to: one of several, where that depends."""


def bound(body: Iterable[ast.stmt], package: str) -> tuple[Names, list[str]]:
    """Return what statements of a module in `package` bind, and the modules of which they import everything.

    The last binding holds, but for those under a condition: they may be one of several.
    """
    names: Names = {}
    return names, _bind(body, names, package, False)


@lru_cache(maxsize=1024)
def bound_locally(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, package: str) -> Names:
    """Return what a function binds: its parameters, and what its body does."""
    every = node.args
    names: Names = {
        item.arg: [Typed(annotation=item.annotation) if item.annotation else None]
        for item in [*every.posonlyargs, *every.args, *every.kwonlyargs]
    }
    names |= {item.arg: [None] for item in (every.vararg, every.kwarg) if item}
    inner: Names = {}
    if not isinstance(node, ast.Lambda):
        inner, _ = bound(node.body, package)
    for item in ast.walk(node):  # in expressions, and the names of caught exceptions
        name = item.id if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store) else None
        name = item.name if isinstance(item, ast.ExceptHandler) else name
        if name is not None:
            inner.setdefault(name, [None])
    return names | {name: names.get(name, []) + bindings for name, bindings in inner.items()}


def members(node: ast.ClassDef, package: str) -> Names:
    """Return what a class has of its own: what its body binds, and what its methods set on `self`."""
    names, _ = bound(node.body, package)
    for method in node.body:
        if isinstance(method, FUNCTION) and method.args.args:
            for name, binding in _set_on(method.body, method.args.args[0].arg):
                names.setdefault(name, []).append(binding)
    return names


def absolute(node: ast.ImportFrom, package: str) -> str:
    """Return the full name of the module that an import in `package` names."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def kind_of(node: object) -> str:
    """Return how a class has something: as a `method`, `classmethod`, `staticmethod`, `property` or `value`."""
    if not isinstance(node, FUNCTION):
        return "value"
    decorators = decorators_of(node)
    if decorators & {"property", "cached_property"}:
        return "property"
    return next((kind for kind in ("classmethod", "staticmethod") if kind in decorators), "method")


def decorators_of(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Return the last names of what decorates a function or a class."""
    return {last_name(item.func if isinstance(item, ast.Call) else item) for item in node.decorator_list}


def last_name(node: ast.expr) -> str:
    """Return the name that an expression ends with, as `c` of `a.b.c`, or nothing if it ends with none."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _bind(body: Iterable[ast.stmt], names: Names, package: str, conditional: bool) -> list[str]:
    stars: list[str] = []

    def put(name: str, binding: Binding) -> None:
        names[name] = [*names.get(name, []), binding] if conditional else [binding]

    for node in body:
        if isinstance(node, (*FUNCTION, ast.ClassDef)):
            if not decorators_of(node) & {"overload", "setter", "deleter"}:
                put(node.name, node)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                put(alias.asname or top, Imported(module=alias.name if alias.asname else top, name=None))
        elif isinstance(node, ast.ImportFrom):
            source = absolute(node, package)
            stars += [source for alias in node.names if alias.name == "*"]
            for alias in node.names:
                put(alias.asname or alias.name, Imported(module=source, name=alias.name))
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                for name, value in _targets(target, node.value):
                    put(name, value)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            put(node.target.id, Typed(annotation=node.annotation))
        elif isinstance(node, ast.If) and last_name(node.test) == "TYPE_CHECKING":
            stars += _bind(node.orelse, names, package, conditional)
        else:
            targets = [getattr(node, "target", None)]  # of a loop
            targets += [item.optional_vars for item in getattr(node, "items", ())]  # of `with`
            for name in (name for target in targets for name, _ in _targets(target, None)):
                put(name, None)
            always = isinstance(node, (ast.With, ast.AsyncWith))
            for part in _parts(node):
                stars += _bind(part, names, package, conditional or not always)
    return stars


def _parts(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """Yield the lists of statements in a statement."""
    for name in ("body", "orelse", "finalbody"):
        if isinstance(part := getattr(node, name, None), list):
            yield part
    for part in [*getattr(node, "handlers", ()), *getattr(node, "cases", ())]:
        yield part.body


def _targets(target: ast.expr | None, value: ast.expr | None) -> Iterator[tuple[str, ast.expr | None]]:
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, (ast.Tuple, ast.List)):
        alike = isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts)
        for index, element in enumerate(target.elts):
            yield from _targets(element, value.elts[index] if alike else None)  # type: ignore[union-attr]
    elif isinstance(target, ast.Starred):
        yield from _targets(target.value, None)


def _set_on(body: Iterable[ast.stmt], this: str) -> Iterator[tuple[str, Binding]]:
    """Yield what statements set on an object, `self` as a rule."""
    for node in body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                for element in target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]:
                    if _is_on(element, this):
                        made = element is target and isinstance(node.value, ast.Call)  # other values may be arguments
                        yield element.attr, node.value if made else None  # type: ignore[attr-defined]
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign)) and _is_on(node.target, this):
            yield node.target.attr, None  # type: ignore[union-attr]
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and node.value.args:
            (name, *_), called = node.value.args, node.value.func
            if _is_on(called, this) and isinstance(name, ast.Constant) and called.attr.startswith("register_"):  # type: ignore[attr-defined]
                yield str(name.value), None
        else:
            for part in _parts(node):
                yield from _set_on(part, this)


def _is_on(node: ast.AST, this: str) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == this
