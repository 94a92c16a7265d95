"""What the overlay's tables and the hooks need of a release, and the names of ours that upstream must not have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

from packaging.specifiers import SpecifierSet

from overlay_tools.api_check.bindings import FUNCTION
from overlay_tools.api_check.references import Reference
from overlay_tools.api_check.registry_rows import _table
from overlay_tools.api_check.resolver import NameResolver
from overlay_tools.api_check.signatures import signature_of
from overlay_tools.errors import ContractError
from overlay_tools.settings import Project

FIXUPS = "sgl_kernel/fixups.py"


def fixup_references(project: Project, resolver: NameResolver) -> Iterator[Reference]:
    """Yield what the CPU kernels change of upstream's modules, each in the releases that its row names.

    Raises ContractError on a row that cannot be read.
    """
    module = resolver.module("sgl_kernel.fixups")
    for call, values in _fixups(project, module.tree) if module else ():
        given = {word.arg: word.value for word in call.keywords if word.arg}
        makers = module.names.get(ast.unparse(call.func), []) if module else []
        for maker in (maker for maker in makers if isinstance(maker, FUNCTION)):
            taken = signature_of(maker).bind_partial(*call.args, **given).arguments
            said = {key: _text(value, values) for key, value in taken.items()}
            if SpecifierSet(said["releases"]).contains(resolver.sources.version, prereleases=True):
                what = f"{said['module']}:{said['symbol']}"
                problem = _unfixed(resolver, said["module"], said["symbol"], said.get("old", ""))
                yield Reference(where=f"overlay/{FIXUPS}:{call.lineno}", kind="row", what=what, problem=problem)


def _fixups(project: Project, tree: ast.Module) -> Iterator[tuple[ast.Call, Mapping[str, ast.expr]]]:
    """Yield the calls that make the rows of FIXUPS, each with the values of the names in its arguments."""
    values = {
        target.id: value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for names in node.targets
        for target, value in _pairs(names, node.value)
    }
    for item in _table(tree, "FIXUPS"):
        loop = item.value if isinstance(item, ast.Starred) else None
        if isinstance(item, ast.Call):
            yield item, values
        elif (
            isinstance(loop, ast.GeneratorExp)
            and isinstance(loop.elt, ast.Call)
            and isinstance(loop.generators[0].iter, ast.Tuple)
        ):
            for each in loop.generators[0].iter.elts:
                pairs = _pairs(loop.generators[0].target, each)
                yield loop.elt, values | {name.id: value for name, value in pairs}
        else:
            raise ContractError(
                f"{project.overlay / FIXUPS}:{item.lineno}: this row of FIXUPS cannot be read.",
                hint="Write it as a call, or as *(a call for ... in (...)).",
            )


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.Name, ast.expr]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for name, part in zip(target.elts, value.elts, strict=True):
            yield from _pairs(name, part)
    elif isinstance(target, ast.Name):
        yield target, value


def _text(node: ast.expr, values: Mapping[str, ast.expr]) -> str:
    """Return the text that an expression of constants makes; of others, nothing."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, values) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, values)
    if isinstance(node, ast.Name) and node.id in values:
        return _text(values[node.id], values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _unfixed(resolver: NameResolver, name: str, symbol: str, old: str) -> str:
    source = resolver.sources.read(f"{name.replace('.', '/')}.py")
    if source is None:
        return f"there is no module {name}"
    text = source.decode("utf-8")
    if old:
        return "" if text.count(old) == 1 else f"{old!r} is in {name} {text.count(old)} times, not once"
    found = [] if _defines(text, symbol) else resolver.imported(name, None)
    for part in symbol.split(".") if found else ():
        found = resolver.attribute(found, part)
    return "" if found or _defines(text, symbol) else f"{name} has no `{symbol}`"


def _defines(text: str, symbol: str) -> bool:
    """Say whether a text defines a name, or a method of a class, in so many words: most of these files are large."""
    for part in symbol.split("."):
        block = re.search(rf"^ *(?:class|(?:async )?def) {part}\b.*(?:\n(?!\w|@).*)*|^{part} *[:=]", text, re.MULTILINE)
        if block is None:
            return False
        text = block[0].partition("\n")[2]
    return True
