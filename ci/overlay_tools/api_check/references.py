"""What code of the overlay needs of upstream: each import, override, call and attribute, and whether it fits.

What runs only in releases that have it is understood: a version that is compared, `hasattr`, `inspect.signature`, an
exception that is caught. What cannot be told from the sources is not reported.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from packaging.version import Version

from overlay_tools.api_check.bindings import FUNCTION, Binding, absolute, bound, bound_locally, kind_of, last_name
from overlay_tools.api_check.resolver import UNKNOWN, Module, NameResolver, Scope, Symbol, is_sglang
from overlay_tools.api_check.signatures import call_mismatch, override_mismatch, signature, signature_of

_CAUGHT = {
    "ImportError": {"import"},
    "ModuleNotFoundError": {"import"},
    "AttributeError": {"attribute"},
    "TypeError": {"call"},
    "Exception": {"import", "attribute", "call"},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """One place that needs something: file and line, kind, what it is in words, and the problem, empty if it fits."""

    where: str
    kind: str
    what: str
    problem: str = ""


def overlay_references(resolver: NameResolver) -> Iterator[Reference]:
    """Yield what the overlay's files need of upstream."""
    for path in resolver.overlay.trees:
        module = resolver.module(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        assert module is not None
        yield from code_references(resolver, module, f"overlay/{path}")


def code_references(resolver: NameResolver, module: Module, file: str, hook: bool = False) -> list[Reference]:
    """Return what code of a module needs of upstream and, where it is a `hook`, of the overlay."""
    reader = _ReferenceFinder(resolver, module, file, hook)
    reader.read(module.tree.body)
    return reader.found


class _ReferenceFinder(ast.NodeVisitor):
    """Walks the code of one module and knows what each name stands for there."""

    def __init__(self, resolver: NameResolver, module: Module, file: str, hook: bool) -> None:
        self.resolver = resolver
        self.module = module
        self.file = file
        self.hook = hook
        self.scope = Scope(module=module)
        self.within: list[str] = []
        self.caught: frozenset[str] = frozenset()
        self.found: list[Reference] = []

    def _add(self, node: ast.AST, kind: str, what: str, problems: Iterable[str] = ()) -> None:
        if kind in ("call", "attribute"):
            what = f"{'.'.join(self.within) or '<module>'}: {what}"
        where = f"{self.file}:{getattr(node, 'lineno', 0)}"
        failing = [] if kind in self.caught else [problem for problem in problems if problem]
        for problem in dict.fromkeys(failing or [""]):
            use = Reference(where=where, kind=kind, what=what, problem=problem)
            if use not in self.found:
                self.found.append(use)

    def read(self, nodes: Iterable[ast.AST]) -> None:
        """Visit nodes in turn."""
        for node in nodes:
            self.visit(node)

    # Where names are bound.

    @contextmanager
    def _in(self, name: str, scope: Scope) -> Iterator[None]:
        before, self.scope = self.scope, scope
        self.within.append(name)
        yield
        self.scope = before
        self.within.pop()

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._import(node, alias.name, None)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self._import(node, absolute(node, self.module.package), None if alias.name == "*" else alias.name)

    def _import(self, node: ast.stmt, module: str, name: str | None) -> None:
        if not is_sglang(module):
            return
        problem = ""
        if self.resolver.module(module) is None:
            problem = f"there is no module {module}{self._elsewhere(name) if name else ''}"
        elif name is not None and not self.resolver.imported(module, name):
            problem = f"{module} has no `{name}`{self._elsewhere(name)}"
        self._add(node, "import", f"{module}.{name}" if name else module, [problem])

    def _elsewhere(self, name: str) -> str:
        """Say where else in the release something of this name is defined, in the file that is called most alike."""
        defined = re.compile(rf"^(?:class|def|async def) {name}\b|^{name}\s*[:=]".encode(), re.MULTILINE)
        sources = self.resolver.sources
        files = [file for file in sources.holding(name) if defined.search(sources.read(file) or b"")]
        modules = [file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files]
        near = difflib.get_close_matches(self.module.name, modules, 1, 0)
        return f"; moved to {near[0]}?" if near else ""

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        cls = Symbol(module=self.module, node=node)
        self.read([*node.decorator_list, *node.bases, *node.keywords])
        with self._in(node.name, Scope(module=self.module, outer=self.scope, owner=cls)):
            self._overrides(cls, node)
            self.read(node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.read([*node.decorator_list, node.args, *([node.returns] if node.returns else [])])
        scope = self._local(node)
        owner, kind = self.scope.owner, kind_of(node)
        if owner is not None and node in getattr(owner.node, "body", ()) and node.args.args and kind != "staticmethod":
            this = Symbol(module=owner.module, node=owner.node, instance=kind != "classmethod")
            scope.this = {node.args.args[0].arg: this}
        with self._in(node.name, scope):
            self.read(node.body)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit(node.args)
        with self._in("<lambda>", self._local(node)):
            self.visit(node.body)

    def _local(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> Scope:
        names = bound_locally(node, self.module.package)
        return Scope(module=self.module, names=names, outer=self.scope, owner=self.scope.owner)

    # What a release does not run.

    def visit_If(self, node: ast.If) -> None:
        self._branches(node.test, node.body, node.orelse)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._branches(node.test, [node.body], [node.orelse])

    def _branches(self, test: ast.expr, body: Iterable[ast.AST], orelse: Iterable[ast.AST]) -> None:
        self.visit(test)
        truth = self._truth(test)
        self.read([*(body if truth is not False else ()), *(orelse if truth is not True else ())])

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for value in node.values:
            self.visit(value)
            if self._truth(value) is isinstance(node.op, ast.Or):
                return

    def visit_Try(self, node: ast.Try) -> None:
        before = self.caught
        for handler in node.handlers:
            if not any(isinstance(item, ast.Raise) for item in ast.walk(handler)):
                kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
                names = ["Exception" if kind is None else ast.unparse(kind) for kind in kinds]
                self.caught = self.caught.union(*(_CAUGHT.get(name, set()) for name in names))
        self.read(node.body)
        self.caught = before
        self.read([*node.handlers, *node.orelse, *node.finalbody])

    def _truth(self, test: ast.expr) -> bool | None:
        """Return what a condition is in this release, or None if that is not for its sources to say."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            truth = self._truth(test.operand)
            return None if truth is None else not truth
        if isinstance(test, ast.BoolOp):
            decides = isinstance(test.op, ast.Or)
            truths = [self._truth(value) for value in test.values]
            return decides if decides in truths else None if None in truths else not decides
        if isinstance(test, ast.Call) and last_name(test.func) == "hasattr" and len(test.args) == 2:
            owner, name = test.args
            found = self.resolver.attribute(self.resolver.evaluate(self.scope, owner), getattr(name, "value", ""))
            return None if UNKNOWN in found or not isinstance(name, ast.Constant) else bool(found)
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            return self._compared(test.left, test.ops[0], test.comparators[0])
        return None

    def _compared(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> bool | None:
        version = re.fullmatch(r"Version\('([^']+)'\)", ast.unparse(right))
        if version and ast.unparse(left) == "Version(sglang.__version__)":
            ours, other = Version(self.resolver.sources.version), Version(version[1])
            truths = {ast.Lt: ours < other, ast.LtE: ours <= other, ast.Gt: ours > other, ast.GtE: ours >= other}
            return truths.get(type(operator))
        parameters = re.fullmatch(r"inspect\.signature\((.+)\)\.parameters", ast.unparse(right))
        if parameters and isinstance(left, ast.Constant) and isinstance(operator, (ast.In, ast.NotIn)):
            function = ast.parse(parameters[1], mode="eval").body
            taken = [signature(self.resolver, symbol) for symbol in self.resolver.evaluate(self.scope, function)]
            if taken and None not in taken:
                return any(left.value in item.parameters for item in taken if item) is isinstance(operator, ast.In)
        return None

    # What is called, taken, set and overridden.

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if last_name(node.func) == "getattr" and len(node.args) == 2 and isinstance(node.args[1], ast.Constant):
            self._take(node, node.args[0], str(node.args[1].value))
        problems = []
        for symbol in self.resolver.evaluate(self.scope, node.func):
            taken = signature(self.resolver, symbol) if self._is_upstreams(symbol) else None
            if taken is not None and symbol.module is not None:
                problem = call_mismatch(taken, node)
                problems.append(f"{symbol.module.name}.{symbol.name}: {problem}" if problem else "")
        if problems:
            self._add(node, "call", f"{ast.unparse(node.func)}()", problems)

    def _is_upstreams(self, symbol: Symbol) -> bool:
        """Say whether what is called is upstream's: of a class, the constructor, and of an object, `forward`."""
        if isinstance(symbol.node, ast.ClassDef):
            symbol = next(self.resolver.defining_classes(symbol, "forward" if symbol.instance else "__init__"), symbol)
        return symbol.module is not None and (self.hook or not symbol.module.ours)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            self._take(node, node.value, node.attr)
        elif isinstance(node.ctx, ast.Store):
            self._set(node)

    def _take(self, node: ast.expr, value: ast.expr, name: str) -> None:
        """Check that upstream has an attribute, unless what it is taken from is unknown, or has it of the overlay."""
        owners = self.resolver.evaluate(self.scope, value)
        if UNKNOWN in owners or not any(self._bases(owner) for owner in owners):
            return
        defining_classes = [next(self.resolver.defining_classes(owner, name), UNKNOWN) for owner in owners]
        if self.hook or not any(holder.module and holder.module.ours for holder in defining_classes):
            has = set(defining_classes) != {UNKNOWN} or self.resolver.attribute(owners, name)
            problem = "" if has else self._lacking(owners[0], name)
            self._add(node, "attribute", f"{ast.unparse(value)}.{name}", [problem])

    def _set(self, node: ast.Attribute) -> None:
        """Check that an attribute that the overlay sets is upstream's, or one of `self` that the overlay reads."""
        owners = self.resolver.evaluate(self.scope, node.value)
        for owner in owners if UNKNOWN not in owners else ():
            bases = [base for base in self._bases(owner) if isinstance(base.node, ast.ClassDef)]
            has = any(node.attr in self.resolver.members(base) for base in bases)
            this = self.scope.owner is not None and owner.node is self.scope.owner.node
            if bases and (has or not this or node.attr not in self.resolver.overlay.accessed_attributes):
                problem = "" if has else self._lacking(bases[0], node.attr)
                self._add(node, "attribute", f"{ast.unparse(node)} =", [problem])

    def _overrides(self, cls: Symbol, node: ast.ClassDef) -> None:
        """Check what a class defines that its bases of upstream's have, or should have: nothing else would call it."""
        bases = self._bases(cls)
        for name, (*_, mine) in bound(node.body, self.module.package)[0].items() if bases else ():
            if name == "__init__" and node.name in self.resolver.overlay.called_names:
                continue  # the overlay makes its objects, and upstream does not
            place = mine if isinstance(mine, ast.AST) else node
            base = next((base for base in bases if name in self.resolver.members(base)), None)
            if base is not None:
                problems = self._unlike(mine, self.resolver.members(base)[name][-1])
                self._add(place, "override", f"{node.name}.{name}", problems)
            elif not name.startswith("__") and name not in self.resolver.overlay.accessed_attributes:
                self._add(place, "override", f"{node.name}.{name}", [self._lacking(bases[0], name)])

    def _unlike(self, mine: Binding, theirs: Binding) -> Iterator[str]:
        if not isinstance(mine, FUNCTION):
            return
        if kind_of(mine) != kind_of(theirs):
            yield f"it is a {kind_of(mine)} here and a {kind_of(theirs)} upstream"
        elif isinstance(theirs, FUNCTION) and type(mine) is not type(theirs):
            yield "only one of ours and upstream's is async"
        elif isinstance(theirs, FUNCTION) and kind_of(mine) != "property":
            skip = kind_of(mine) != "staticmethod"
            yield from override_mismatch(signature_of(mine, skip), signature_of(theirs, skip))

    def _bases(self, owner: Symbol) -> list[Symbol]:
        """Return what of a module or of a class is upstream's: it, or the classes that it derives from."""
        every = self.resolver.mro(owner) if isinstance(owner.node, ast.ClassDef) else [owner]
        known = isinstance(owner.node, (ast.ClassDef, ast.Module))
        return [base for base in every if known and base.module and (self.hook or not base.module.ours)]

    def _lacking(self, owner: Symbol, name: str) -> str:
        """Say that there is no such attribute, and what of nearly this name there is."""
        names = set(owner.module.names) if owner.module else set()
        if isinstance(owner.node, ast.ClassDef):
            names = {name for base in self._bases(owner) for name in self.resolver.members(base)}
        near = difflib.get_close_matches(name, names, 1)
        return f"{owner.name} has no `{name}`{f'; now `{near[0]}`?' if near else ''}"
