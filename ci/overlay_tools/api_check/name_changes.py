"""What the overlay uses of upstream and one release has otherwise than another: where it is, what it takes, its code.

It says what still fits, too: a person may want to do as upstream now does.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from inspect import Parameter, Signature

from overlay_tools.api_check.bindings import FUNCTION, member_kind
from overlay_tools.api_check.contract import FoundReferences
from overlay_tools.api_check.references import Reference
from overlay_tools.api_check.resolver import NameResolver
from overlay_tools.api_check.signatures import call_signatures, display, function_signature
from overlay_tools.api_check.symbols import Symbol


@dataclass(frozen=True, kw_only=True, slots=True)
class NameChange:
    """One thing of upstream's that the overlay or a hook uses, and that has changed.

    `name`, as `module:name`, or what a reference needs where that cannot be told; `what`, in words; `fits`, whether the
    code that uses it still does; `places`, each the file and line of such code; `upstream`, where it is now, or empty.
    """

    name: str
    upstream: str
    what: str
    fits: bool
    places: tuple[str, ...]


def find_name_changes(old: FoundReferences, new: FoundReferences) -> list[NameChange]:
    """Return what has changed between two releases of all that the overlay and the hooks use in both.

    Code that runs in one of the two alone is written for that one, and left out.
    """
    after = _by_place(new.references)
    found: dict[NameChange, dict[str, None]] = {}
    for place, before in _by_place(old.references).items():
        for change in _changes(before, after.get(place), old.resolver, new.resolver):
            found.setdefault(change, {})[before.where] = None
    changes = [replace(change, places=tuple(places)) for change, places in found.items()]
    return sorted(changes, key=lambda change: (change.fits, change.name))


def _by_place(references: Iterable[Reference]) -> Mapping[tuple[str, str, str], Reference]:
    """Return references by what is the same in two releases if nothing has changed for them."""
    return {(item.where, item.kind, item.what): item for item in references if item.kind not in ("collision", "row")}


def _changes(before: Reference, after: Reference | None, old: NameResolver, new: NameResolver) -> Iterator[NameChange]:
    """Yield what has changed at one place in the overlay, without this place."""
    if after is None:
        return
    if after.problem:
        if not before.problem:
            yield NameChange(
                name=next(iter(before.names), before.what), upstream="", what=after.problem, fits=False, places=()
            )
        return
    for name, name_now in zip(before.names, after.names, strict=False):
        was, now = _find(old, name), _find(new, name_now)
        if was is None or now is None or was.module is None or now.module is None:
            continue
        words: list[str] = []
        if before.kind != "import":
            words = [*_of_another_kind(was, now), *_signature_changes(old, was, new, now)]
        elif was.module.name != now.module.name:
            words = [f"defined in {now.module.name} now, in {was.module.name} before; the import still works"]
        if before.kind == "override":
            words += _code_changes(was, now)
        if words:
            where = f"{now.module.path}:{getattr(now.node, 'lineno', 1)}"
            yield NameChange(name=name, upstream=where, what="; ".join(words), fits=True, places=())


def _find(resolver: NameResolver, name: str) -> Symbol | None:
    """Return what a name of `Reference.names` stands for, or None if that cannot be told."""
    module, _, path = name.partition(":")
    first, _, member = path.partition(".")
    found = next(iter(resolver.resolve_import(module, first)), None)
    if not member or found is None:
        return found
    cls = next(resolver.defining_classes(found, member), None)
    node = resolver.members(cls)[member][-1] if cls is not None and cls.module is not None else None
    return Symbol(module=cls.module, node=node) if cls is not None and isinstance(node, ast.AST) else None


def _of_another_kind(was: Symbol, now: Symbol) -> Iterator[str]:
    kinds = [_kind(symbol.node) for symbol in (was, now)]
    if kinds[0] != kinds[1]:
        yield f"a {kinds[1]} now, a {kinds[0]} before"


def _kind(node: ast.AST | None) -> str:
    if isinstance(node, ast.ClassDef):
        return "class"
    if not isinstance(node, FUNCTION):
        return "value"
    kind = member_kind(node).replace("method", "function") if member_kind(node) == "method" else member_kind(node)
    return f"{'coroutine ' * isinstance(node, ast.AsyncFunctionDef)}{kind}"


def _signature_changes(old: NameResolver, was: Symbol, new: NameResolver, now: Symbol) -> Iterator[str]:
    """Yield how what is called takes other arguments than before."""
    before, after = (_signature(resolver, symbol) for resolver, symbol in ((old, was), (new, now)))
    if before is None or after is None or before == after:
        return
    ours, theirs = before.parameters, after.parameters
    added, gone = ([item for item in some if item not in others] for some, others in ((theirs, ours), (ours, theirs)))
    for verb, required in (("requires", True), ("takes", False)):
        if names := [f"`{display(theirs[name])}`" for name in added if _required(theirs[name]) is required]:
            yield f"{verb} {', '.join(names)} too"
    if gone:
        yield f"no longer takes {', '.join(f'`{display(ours[name])}`' for name in gone)}"
    kept = [name for name in ours if name in theirs]
    for name in kept:
        if _required(ours[name]) != _required(theirs[name]):
            yield f"`{name}` is {'required' if _required(theirs[name]) else 'optional'} now"
        elif ours[name].kind != theirs[name].kind:
            yield f"`{name}` is passed in another way"
    if kept != [name for name in theirs if name in ours]:
        yield f"its arguments have another order: ({', '.join(map(display, theirs.values()))})"


def _signature(resolver: NameResolver, symbol: Symbol) -> Signature | None:
    if isinstance(symbol.node, FUNCTION):
        return function_signature(symbol.node)
    return next(iter(call_signatures(resolver, symbol)), None) if isinstance(symbol.node, ast.ClassDef) else None


def _required(item: Parameter) -> bool:
    return item.default is Parameter.empty and item.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def _code_changes(was: Symbol, now: Symbol) -> Iterator[str]:
    """Yield how much of the code has changed that one of the overlay's methods takes the place of."""
    before, after = (ast.unparse(symbol.node).split("\n") if symbol.node else [] for symbol in (was, now))
    if before == after or not isinstance(now.node, FUNCTION):
        return
    edits = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    changed = [edit for edit in edits if edit[0] != "equal"]
    added, removed = sum(end - start for *_, start, end in changed), sum(edit[2] - edit[1] for edit in changed)
    yield f"upstream's own code changed, +{added}/-{removed} lines: see whether yours has to"
