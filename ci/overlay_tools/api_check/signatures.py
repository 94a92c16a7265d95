"""Signatures of functions, classes and objects, and whether a call or an override fits one."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from inspect import Parameter

from overlay_tools.api_check.bindings import FUNCTION, decorator_names
from overlay_tools.api_check.resolver import NameResolver
from overlay_tools.api_check.symbols import Symbol

_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def call_signatures(resolver: NameResolver, symbol: Symbol) -> list[inspect.Signature]:
    """Return the signatures that calls of a function, a class or an object must fit; an empty list if unknown."""
    node = symbol.node
    if isinstance(node, FUNCTION):
        return [function_signature(node, skip=1 if symbol.is_bound else 0)]
    if not isinstance(node, ast.ClassDef):
        return []
    if symbol.is_instance:  # torch calls a module's forward
        names = ("__call__", "forward")
        called = next((name for name in names if next(resolver.defining_classes(symbol, name), None)), None)
        found = resolver.resolve_attribute([symbol], called) if called else []
        return [function_signature(item.node, skip=1) for item in found if isinstance(item.node, FUNCTION)]
    for cls in resolver.mro(symbol):
        if not isinstance(cls.node, ast.ClassDef):
            return []
        if "__init__" in resolver.members(cls):
            every = resolver.definitions(cls, "__init__")
            return [function_signature(item, skip=1) for item in every if isinstance(item, FUNCTION)]
        if "dataclass" in decorator_names(cls.node):
            return _dataclass_signatures(resolver, cls)
    return [inspect.Signature()]


def _dataclass_signatures(resolver: NameResolver, cls: Symbol) -> list[inspect.Signature]:
    """Return the one signature that `dataclass` gives a class; an empty list if it is unknown."""
    parameters: dict[str, Parameter] = {}
    for base in reversed(resolver.mro(cls)):
        if not isinstance(base.node, ast.ClassDef):
            return []
        if "dataclass" not in decorator_names(base.node):
            continue
        kw_only = any("kw_only=True" in ast.unparse(item) for item in base.node.decorator_list)
        for node in base.node.body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            name, value = node.target.id, ast.unparse(node.value) if node.value else ""
            annotation = ast.unparse(node.annotation)
            if annotation.endswith("KW_ONLY"):
                kw_only = True
            elif "ClassVar" not in annotation and "init=False" not in value:
                kind = Parameter.KEYWORD_ONLY if kw_only else Parameter.POSITIONAL_OR_KEYWORD
                optional = bool(value) and (not value.startswith("field(") or "default" in value)
                parameters[name] = Parameter(name, kind, default=_default(optional))
    ordered = sorted(parameters.values(), key=lambda item: item.kind)
    # Python refuses a field without a default after one with a default; that is for upstream to notice.
    return [inspect.Signature(ordered, __validate_parameters__=False)]


def function_signature(node: ast.FunctionDef | ast.AsyncFunctionDef, skip: int = 0) -> inspect.Signature:
    """Return the signature of a function, without its first `skip` parameters."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    parameters = [
        Parameter(
            item.arg,
            Parameter.POSITIONAL_ONLY if index < len(arguments.posonlyargs) else Parameter.POSITIONAL_OR_KEYWORD,
            default=_default(index >= required),
        )
        for index, item in enumerate(positional)
    ][skip:]
    if arguments.vararg:
        parameters.append(Parameter(arguments.vararg.arg, Parameter.VAR_POSITIONAL))
    for item, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parameters.append(Parameter(item.arg, Parameter.KEYWORD_ONLY, default=_default(default is not None)))
    if arguments.kwarg:
        parameters.append(Parameter(arguments.kwarg.arg, Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters)


def override_mismatch(ours: inspect.Signature, theirs: inspect.Signature) -> Iterator[str]:
    """Yield why a function of ours cannot replace one of theirs: how theirs may be called and ours may not."""
    positional = [item for item in ours.parameters.values() if item.kind <= Parameter.POSITIONAL_OR_KEYWORD]
    kinds = {item.kind for item in ours.parameters.values()}
    swapped: set[str] = set()
    for index, item in enumerate(theirs.parameters.values()):
        name, same_name = item.name, ours.parameters.get(item.name)
        if item.kind in _VARIADIC:
            if item.kind not in kinds:
                yield f"upstream takes any further {'keywords' if item.kind == Parameter.VAR_KEYWORD else 'arguments'}"
            continue
        by_name = item.kind != Parameter.POSITIONAL_ONLY and (same_name is not None or Parameter.VAR_KEYWORD in kinds)
        by_position = item.kind != Parameter.KEYWORD_ONLY and (
            index < len(positional) or Parameter.VAR_POSITIONAL in kinds
        )
        has_both = item.kind == Parameter.POSITIONAL_OR_KEYWORD
        if has_both and index < len(positional) and positional[index].name != name and not swapped:
            swapped = {name, positional[index].name}
            yield f"upstream's argument {index + 1} is `{name}`, here it is `{positional[index].name}`"
        elif name not in swapped and not (by_position if item.kind == Parameter.POSITIONAL_ONLY else by_name):
            yield f"upstream also takes `{name}`"
        elif has_both and not by_position and not swapped:
            yield f"upstream takes `{name}` by position too"
        if same_name is not None and same_name.default is Parameter.empty and item.default is not Parameter.empty:
            yield f"`{name}` is required here and optional upstream"
    for item in ours.parameters.values():
        required = item.default is Parameter.empty and item.kind not in _VARIADIC
        if required and item.name not in {*theirs.parameters, *swapped}:
            yield f"upstream does not pass `{item.name}`"


def call_mismatch(taken: inspect.Signature, call: ast.Call, *, check_names: bool = True) -> str:
    """Return why a call's arguments do not fit a signature; an empty text if they fit.

    Parameters: `check_names`, whether it counts as well that a value has the name of another parameter.
    """
    positional: list[ast.expr] = []
    for item in call.args:
        if isinstance(item, ast.Starred):
            break
        positional.append(item)
    named = {item.arg: item.value for item in call.keywords if item.arg}
    is_complete = len(positional) == len(call.args) and len(named) == len(call.keywords)
    takes = f"; it takes ({', '.join(map(display, taken.parameters.values()))})"
    try:
        # What is missing may come from `*` or `**`.
        bound = (taken.bind if is_complete else taken.bind_partial)(*positional, **named).arguments
    except TypeError as error:
        return f"{error}{takes}"
    for name, value in bound.items() if check_names else ():
        passed = value.id if isinstance(value, ast.Name) else getattr(value, "attr", name)
        if value in positional and passed != name and passed in taken.parameters:
            return f"`{passed}` is passed where it takes `{name}`{takes}"
    return ""


def _default(optional: bool) -> object:
    return None if optional else Parameter.empty


def display(item: Parameter) -> str:
    """Return a parameter as a message shows it, as `scale=` if it is optional."""
    stars = "*" if item.kind == Parameter.VAR_POSITIONAL else "**" if item.kind == Parameter.VAR_KEYWORD else ""
    return f"{stars}{item.name}{'' if item.default is Parameter.empty else '='}"
