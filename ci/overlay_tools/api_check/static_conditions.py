"""Conditions that a release's sources decide: on its version, `hasattr`, a function's parameters, TYPE_CHECKING."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from operator import eq, ge, gt, le, lt, ne

from packaging.version import Version

from overlay_tools.api_check.bindings import last_name
from overlay_tools.api_check.resolver import NameResolver
from overlay_tools.api_check.signatures import call_signatures
from overlay_tools.api_check.symbols import UNKNOWN, Scope

_COMPARISONS: dict[type[ast.cmpop], Callable[[Version, Version], bool]] = {
    ast.Lt: lt,
    ast.LtE: le,
    ast.Gt: gt,
    ast.GtE: ge,
    ast.Eq: eq,
    ast.NotEq: ne,
}


def evaluate_condition(resolver: NameResolver, scope: Scope, test: ast.expr) -> bool | None:
    """Return the value of a condition in the resolver's release, or None if its sources do not decide it."""
    if last_name(test) == "TYPE_CHECKING":
        return False
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        value = evaluate_condition(resolver, scope, test.operand)
        return None if value is None else not value
    if isinstance(test, ast.BoolOp):
        decisive = isinstance(test.op, ast.Or)
        values = [evaluate_condition(resolver, scope, part) for part in test.values]
        return decisive if decisive in values else None if None in values else not decisive
    if isinstance(test, ast.Call) and last_name(test.func) == "hasattr" and len(test.args) == 2:
        return _has_attribute(resolver, scope, *test.args)
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        left, operator, right = test.left, test.ops[0], test.comparators[0]
        version = re.fullmatch(r"Version\('([^']+)'\)", ast.unparse(right))
        if version and ast.unparse(left) == "Version(sglang.__version__)":
            return _compare(Version(resolver.sources.version), operator, Version(version[1]))
        if isinstance(left, ast.Constant) and isinstance(operator, (ast.In, ast.NotIn)):
            taken = _takes(resolver, scope, left.value, right)
            return None if taken is None else taken is isinstance(operator, ast.In)
    return None


def _has_attribute(resolver: NameResolver, scope: Scope, owner: ast.expr, name: ast.expr) -> bool | None:
    found = resolver.resolve_attribute(resolver.infer(scope, owner), getattr(name, "value", ""))
    return None if UNKNOWN in found or not isinstance(name, ast.Constant) else bool(found)


def _compare(left: Version, operator: ast.cmpop, right: Version) -> bool | None:
    """Compare a release with another version, or return None where its wheel compares otherwise than the release.

    Code runs in the wheel, as 1.0+overlay.4, and beside the plugin, as 1.0: only the first is greater than 1.0.
    """
    compare = _COMPARISONS.get(type(operator))
    if compare is None or (left.public == right.public and (right.local or compare not in (lt, ge))):
        return None
    return compare(left, right)


def _takes(resolver: NameResolver, scope: Scope, name: object, container: ast.expr) -> bool | None:
    """Say whether `inspect.signature(function).parameters` holds a name, or None where that is not what is asked."""
    parameters = re.fullmatch(r"inspect\.signature\((.+)\)\.parameters", ast.unparse(container))
    if parameters is None:
        return None
    function = ast.parse(parameters[1], mode="eval").body
    signatures = [call_signatures(resolver, symbol) for symbol in resolver.infer(scope, function)]
    if not signatures or [] in signatures:
        return None
    return any(name in item.parameters for every in signatures for item in every)
