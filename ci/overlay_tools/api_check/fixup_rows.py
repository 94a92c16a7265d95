"""What the fix-ups of the CPU kernels change of upstream's modules, and whether a release has it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

from packaging.specifiers import SpecifierSet

from overlay_tools.api_check.bindings import FUNCTION
from overlay_tools.api_check.references import Reference
from overlay_tools.api_check.registry_rows import table_rows
from overlay_tools.api_check.resolver import NameResolver
from overlay_tools.api_check.signatures import function_signature
from overlay_tools.errors import ContractError
from overlay_tools.settings import Project

FIXUPS = "sgl_kernel/fixups.py"


def fixup_references(project: Project, resolver: NameResolver) -> Iterator[Reference]:
    """Yield what each row of FIXUPS changes, if it is for the resolver's release.

    Raises ContractError on a row that cannot be read.
    """
    module = resolver.module("sgl_kernel.fixups")
    for call, constants in _fixup_calls(project, module.tree) if module else ():
        keywords = {word.arg: word.value for word in call.keywords if word.arg}
        functions = module.bindings.get(ast.unparse(call.func), []) if module else []
        for function in (function for function in functions if isinstance(function, FUNCTION)):
            arguments = function_signature(function).bind_partial(*call.args, **keywords).arguments
            row = {name: _literal(value, constants) for name, value in arguments.items()}
            if SpecifierSet(row["releases"]).contains(resolver.sources.version, prereleases=True):
                what = f"{row['module']}:{row['symbol']}"
                problem = _problem(resolver, row["module"], row["symbol"], row.get("old", ""))
                yield Reference(where=f"overlay/{FIXUPS}:{call.lineno}", kind="row", what=what, problem=problem)


def _fixup_calls(project: Project, tree: ast.Module) -> Iterator[tuple[ast.Call, Mapping[str, ast.expr]]]:
    """Yield the calls that make the rows of FIXUPS, each with the values of the names in its arguments."""
    constants = {
        target.id: value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for targets in node.targets
        for target, value in _unpack(targets, node.value)
    }
    for item in table_rows(tree, "FIXUPS"):
        loop = item.value if isinstance(item, ast.Starred) else None
        if isinstance(item, ast.Call):
            yield item, constants
        elif (
            isinstance(loop, ast.GeneratorExp)
            and isinstance(loop.elt, ast.Call)
            and isinstance(loop.generators[0].iter, ast.Tuple)
        ):
            for value in loop.generators[0].iter.elts:
                variables = _unpack(loop.generators[0].target, value)
                yield loop.elt, constants | {name.id: part for name, part in variables}
        else:
            raise ContractError(
                f"{project.overlay / FIXUPS}:{item.lineno}: this row of FIXUPS cannot be read.",
                hint="Write it as a call, or as *(a call for ... in (...)).",
            )


def _unpack(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.Name, ast.expr]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for name, part in zip(target.elts, value.elts, strict=True):
            yield from _unpack(name, part)
    elif isinstance(target, ast.Name):
        yield target, value


def _literal(node: ast.expr, constants: Mapping[str, ast.expr]) -> str:
    """Return the text that an expression of constants makes, or an empty one for any other expression."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_literal(part, constants) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _literal(node.value, constants)
    if isinstance(node, ast.Name) and node.id in constants:
        return _literal(constants[node.id], constants)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _problem(resolver: NameResolver, module: str, symbol: str, old: str) -> str:
    source = resolver.sources.read(f"{module.replace('.', '/')}.py")
    if source is None:
        return f"there is no module {module}"
    text = source.decode("utf-8")
    if old:
        return "" if text.count(old) == 1 else f"{old!r} is in {module} {text.count(old)} times, not once"
    found = [] if _defines(text, symbol) else resolver.resolve_import(module, None)
    for part in symbol.split(".") if found else ():
        found = resolver.resolve_attribute(found, part)
    return "" if found or _defines(text, symbol) else f"{module} has no `{symbol}`"


def _defines(text: str, symbol: str) -> bool:
    """Say whether a source defines a name, or a method of a class; a search, because most of these files are large."""
    for part in symbol.split("."):
        block = re.search(rf"^ *(?:class|(?:async )?def) {part}\b.*(?:\n(?!\w|@).*)*|^{part} *[:=]", text, re.MULTILINE)
        if block is None:
            return False
        text = block[0].partition("\n")[2]
    return True
