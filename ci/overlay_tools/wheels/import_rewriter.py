"""Code of the overlay with its modules renamed to those of the plugin."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping

from overlay_tools.errors import BuildError
from overlay_tools.wheels.overlay_files import compile_all


def rewrite(data: bytes, modules: Mapping[str, str], path: str) -> bytes:
    """Return a file's code in which the overlay's modules have their names in the plugin.

    Dotted names in the code are renamed, and strings that consist of a module's name, or of that and `:NAME`.
    Parameters: `modules`, the name in the plugin of each module by its name in the overlay; `path`, what an error calls
    the file.
    Raises BuildError, with the line, for a syntax error and for anything that would still lead to an old name.
    """
    compile_all({path: data})
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BuildError(f"{path} is not UTF-8.", hint="Save it as UTF-8.") from None
    lines = io.StringIO(text).readlines()  # as the tokenizer counts them: a form feed does not end a line
    faults = [f"{path}:{line}: {fault}" for line, fault in _imports_left(ast.parse(text), modules)]
    for (row, start), (_, end), new in reversed(list(_renamed(text, modules))):
        line = lines[row - 1]
        lines[row - 1] = line[:start] + new + line[end:]
    text = "".join(lines)
    faults += [f"{path}:{line}: {fault}" for line, fault in _names_left(ast.parse(text), modules)]
    if faults:
        raise BuildError(*faults, hint="Import the overlay's own modules as `from sglang.srt.models.name import Name`.")
    return text.encode("utf-8")


def _renamed(text: str, modules: Mapping[str, str]) -> Iterator[tuple[tuple[int, int], tuple[int, int], str]]:
    """Yield where each old name starts and ends, and the new name that is to stand there."""
    chain: list[tokenize.TokenInfo] = []
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if chain and token.start == chain[-1].end and (token.string == ".") != (chain[-1].string == "."):
            chain.append(token)
            continue
        yield from _renamed_chain(chain, modules)
        chain = [token] if token.type == tokenize.NAME and before != "." else []
        before = token.string
        if token.type == tokenize.STRING and (found := re.fullmatch(r"""(["'])([\w.]+)(:\w+)?\1""", token.string)):
            quote, name, rest = found.groups()
            if name in modules:
                yield token.start, token.end, f"{quote}{modules[name]}{rest or ''}{quote}"


def _renamed_chain(
    chain: list[tokenize.TokenInfo], modules: Mapping[str, str]
) -> Iterator[tuple[tuple[int, int], tuple[int, int], str]]:
    for length in range(len(chain), 0, -1):
        if (name := "".join(token.string for token in chain[:length])) in modules:
            yield chain[0].start, chain[length - 1].end, modules[name]
            return


def _imports_left(tree: ast.Module, modules: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Yield what leads to a module of the overlay and cannot be renamed.

    This is asked before renaming: the names in an f-string are tokens only since Python 3.12.
    """
    old = _any_of(modules)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "a relative import."
            for alias in node.names:
                if f"{node.module}.{alias.name}" in modules:
                    yield node.lineno, f"it imports the module {alias.name} from its package."
        elif isinstance(node, ast.JoinedStr) and (found := old.search(ast.unparse(node))):
            yield node.lineno, f"an f-string names {found.group()}."


def _names_left(tree: ast.Module, modules: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Yield the strings, docstrings left out, that still name a module of the overlay by its old name."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    old = _any_of(modules)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in docstrings:
            continue
        if found := old.search(node.value):
            yield node.lineno, f"a string names {found.group()}."


def _any_of(modules: Mapping[str, str]) -> re.Pattern[str]:
    return re.compile("|".join(rf"(?<![\w.]){re.escape(name)}(?!\w)" for name in modules) or r"(?!)")
