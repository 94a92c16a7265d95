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
    before = ast.parse(text)
    left = [*_imports_left(before, modules), *_modules_left(before, modules)]
    for (row, start), (_, end), new in reversed(list(_renamed(text, modules))):
        line = lines[row - 1]
        lines[row - 1] = line[:start] + new + line[end:]
    text = "".join(lines)
    after = ast.parse(text)
    left += [*_names_left(after, modules), *_unbound(before, after, modules)]
    if left:
        faults = (f"{path}:{line}: {fault}" for line, fault in left)
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


def _modules_left(tree: ast.Module, modules: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Yield what reaches a module of the overlay as an attribute of a package that an import has given a name."""
    named: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            named |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            named |= {alias.asname: alias.name for alias in node.names if alias.asname and alias.name not in modules}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name, _, rest = (chain := ast.unparse(node)).partition(".")
            if (module := f"{named.get(name)}.{rest}") in modules:
                yield node.lineno, f"{chain} is the module {module}."


def _unbound(before: ast.Module, after: ast.Module, modules: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Yield each use of `sglang` that nothing binds once the imports of the overlay's modules are renamed."""
    imports = [node for node in ast.walk(before) if isinstance(node, ast.Import)]
    lost = {alias.name for node in imports for alias in node.names if not alias.asname and alias.name in modules}
    # An import in a function binds the name there alone.
    kept = {alias.name for node in imports if node in before.body for alias in node.names if not alias.asname} - lost
    unbound = {name.partition(".")[0] for name in lost} - {name.partition(".")[0] for name in kept}
    for node in ast.walk(after):
        if isinstance(node, ast.Name) and node.id in unbound:
            yield node.lineno, f"{node.id} is bound only by the import of {min(lost)}, which is renamed."


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
