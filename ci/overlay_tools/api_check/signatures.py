"""How things are called: the signature of a function, a class or an object, and whether a call or an override fits."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator

from overlay_tools.api_check.bindings import FUNCTION, decorators_of
from overlay_tools.api_check.resolver import NameResolver, Symbol

_Kinds = inspect.Parameter
_VARIABLE = (_Kinds.VAR_POSITIONAL, _Kinds.VAR_KEYWORD)


def signature(resolver: NameResolver, symbol: Symbol) -> inspect.Signature | None:
    """Return how a function, a class or an object is called, without what is given already; None if unknown."""
    node = symbol.node
    if isinstance(node, FUNCTION):
        return signature_of(node, skip=1 if symbol.given else 0)
    if not isinstance(node, ast.ClassDef):
        return None
    if symbol.instance:  # torch calls a module's forward
        names = ("__call__", "forward")
        called = next((name for name in names if next(resolver.defining_classes(symbol, name), None)), None)
        found = next(iter(resolver.attribute([symbol], called)), symbol) if called else symbol
        return signature_of(found.node, skip=1) if isinstance(found.node, FUNCTION) else None
    for cls in resolver.mro(symbol):
        if not isinstance(cls.node, ast.ClassDef):
            return None
        if init := resolver.members(cls).get("__init__"):
            return signature_of(init[-1], skip=1) if isinstance(init[-1], FUNCTION) else None
        if "dataclass" in decorators_of(cls.node):
            return _fields(resolver, cls)
    return inspect.Signature()


def _fields(resolver: NameResolver, cls: Symbol) -> inspect.Signature | None:
    """Return the signature that `dataclass` gives a class."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in reversed(resolver.mro(cls)):
        if not isinstance(base.node, ast.ClassDef):
            return None
        if "dataclass" not in decorators_of(base.node):
            continue
        keywords = any("kw_only=True" in ast.unparse(item) for item in base.node.decorator_list)
        for node in base.node.body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            name, value = node.target.id, ast.unparse(node.value) if node.value else ""
            annotation = ast.unparse(node.annotation)
            if annotation.endswith("KW_ONLY"):
                keywords = True
            elif "ClassVar" not in annotation and "init=False" not in value:
                kind = _Kinds.KEYWORD_ONLY if keywords else _Kinds.POSITIONAL_OR_KEYWORD
                optional = bool(value) and (not value.startswith("field(") or "default" in value)
                parameters[name] = _Kinds(name, kind, default=_default(optional))
    ordered = sorted(parameters.values(), key=lambda item: item.kind)
    # A field without a default after one with: Python refuses such a class, which is upstream's affair.
    return inspect.Signature(ordered, __validate_parameters__=False)


def signature_of(node: ast.FunctionDef | ast.AsyncFunctionDef, skip: int = 0) -> inspect.Signature:
    """Return the signature of a function, without its first `skip` parameters."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    found = [
        _Kinds(
            item.arg,
            _Kinds.POSITIONAL_ONLY if index < len(arguments.posonlyargs) else _Kinds.POSITIONAL_OR_KEYWORD,
            default=_default(index >= required),
        )
        for index, item in enumerate(positional)
    ][skip:]
    if arguments.vararg:
        found.append(_Kinds(arguments.vararg.arg, _Kinds.VAR_POSITIONAL))
    for item, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append(_Kinds(item.arg, _Kinds.KEYWORD_ONLY, default=_default(default is not None)))
    if arguments.kwarg:
        found.append(_Kinds(arguments.kwarg.arg, _Kinds.VAR_KEYWORD))
    return inspect.Signature(found)


def override_mismatch(ours: inspect.Signature, theirs: inspect.Signature) -> Iterator[str]:
    """Yield why a function cannot stand in for another: what the other may be called with and this may not."""
    own = [item for item in ours.parameters.values() if item.kind <= _Kinds.POSITIONAL_OR_KEYWORD]
    takes = {item.kind for item in ours.parameters.values()}
    moved: set[str] = set()
    for index, item in enumerate(theirs.parameters.values()):
        name, mine = item.name, ours.parameters.get(item.name)
        if item.kind in _VARIABLE:
            if item.kind not in takes:
                yield f"upstream takes any further {'keywords' if item.kind == _Kinds.VAR_KEYWORD else 'arguments'}"
            continue
        by_name = item.kind != _Kinds.POSITIONAL_ONLY and (mine is not None or _Kinds.VAR_KEYWORD in takes)
        by_place = item.kind != _Kinds.KEYWORD_ONLY and (index < len(own) or _Kinds.VAR_POSITIONAL in takes)
        if item.kind == _Kinds.POSITIONAL_OR_KEYWORD and index < len(own) and own[index].name != name and not moved:
            moved = {name, own[index].name}
            yield f"upstream's argument {index + 1} is `{name}`, here it is `{own[index].name}`"
        elif name not in moved and not (by_place if item.kind == _Kinds.POSITIONAL_ONLY else by_name):
            yield f"upstream also takes `{name}`"
        elif item.kind == _Kinds.POSITIONAL_OR_KEYWORD and not by_place and not moved:
            yield f"upstream takes `{name}` by position too"
        if mine is not None and mine.default is _Kinds.empty and item.default is not _Kinds.empty:
            yield f"`{name}` is required here and optional upstream"
    for item in ours.parameters.values():
        required = item.default is _Kinds.empty and item.kind not in _VARIABLE
        if required and item.name not in {*theirs.parameters, *moved}:
            yield f"upstream does not pass `{item.name}`"


def call_mismatch(taken: inspect.Signature, call: ast.Call) -> str:
    """Return why the arguments of a call do not bind, or bind to another's name; nothing if they fit."""
    given: list[ast.expr] = []
    for item in call.args:
        if isinstance(item, ast.Starred):
            break
        given.append(item)
    named = {item.arg: item.value for item in call.keywords if item.arg}
    whole = len(given) == len(call.args) and len(named) == len(call.keywords)
    takes = f"; it takes ({', '.join(map(_shown, taken.parameters.values()))})"
    try:
        # What `*` and `**` bring may be what is missing.
        values = (taken.bind if whole else taken.bind_partial)(*given, **named).arguments
    except TypeError as error:
        return f"{error}{takes}"
    for name, value in values.items():
        said = value.id if isinstance(value, ast.Name) else getattr(value, "attr", name)
        if value in given and said != name and said in taken.parameters:
            return f"`{said}` is passed where it takes `{name}`{takes}"
    return ""


def _default(optional: bool) -> object:
    return None if optional else _Kinds.empty


def _shown(item: inspect.Parameter) -> str:
    stars = "*" if item.kind == _Kinds.VAR_POSITIONAL else "**" if item.kind == _Kinds.VAR_KEYWORD else ""
    return f"{stars}{item.name}{'' if item.default is _Kinds.empty else '='}"
