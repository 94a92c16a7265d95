"""What code of the overlay needs of upstream: each import, override, call and attribute, and whether it fits.

Code that only runs in releases that have what it needs is understood: a version that is compared, `hasattr`,
`inspect.signature`, an exception that is caught. What the sources do not tell is not reported.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from overlay_tools.api_check.bindings import (
    FUNCTION,
    Binding,
    absolute_module,
    collect_bindings,
    collect_locals,
    last_name,
    member_kind,
)
from overlay_tools.api_check.registered_names import SERVING
from overlay_tools.api_check.resolver import NameResolver
from overlay_tools.api_check.signatures import call_mismatch, call_signatures, function_signature, override_mismatch
from overlay_tools.api_check.static_conditions import evaluate_condition
from overlay_tools.api_check.symbols import UNKNOWN, Module, Scope, Symbol, is_sglang
from overlay_tools.upstream.source_tree import module_name

_KINDS_CAUGHT_BY = {
    "ImportError": {"import"},
    "ModuleNotFoundError": {"import"},
    "AttributeError": {"attribute"},
    "TypeError": {"call"},
    "Exception": {"import", "attribute", "call"},
}
_LEAVES = (ast.Name, ast.Constant, ast.expr_context, ast.operator, ast.cmpop, ast.boolop, ast.unaryop)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """One place in the overlay or in a hook that needs something of upstream.

    `where`: file and line; `kind`: one of KINDS; `what`: what it needs, in words that stay the same when lines move;
    `problem`: why the release does not give it, empty if it does; `names`: what of upstream's it means, each as
    `module:name` or `module:Class.name`, where that can be told.
    """

    where: str
    kind: str
    what: str
    problem: str = ""
    names: tuple[str, ...] = field(default=(), compare=False)


def overlay_references(resolver: NameResolver, paths: Iterable[str]) -> Iterator[Reference]:
    """Yield what some of the overlay's files need of upstream."""
    for path in paths:
        module = resolver.module(module_name(path))
        assert module is not None
        yield from code_references(resolver, module, f"overlay/{path}")


def code_references(
    resolver: NameResolver, module: Module, file: str, hook_lines: Mapping[int, int] | None = None
) -> list[Reference]:
    """Return what code of a module needs of upstream.

    Parameters: `file`, where the code comes from; `hook_lines`, if only some lines are asked about, those that a hook
    adds: their numbers in the module, with their numbers in `file`. What they need of the overlay counts as well.
    """
    finder = _ReferenceFinder(resolver, module, file, hook_lines)
    finder.visit_all(module.tree.body)
    return finder.found


class _ReferenceFinder(ast.NodeVisitor):
    """Visits the code of one module, and keeps track of the scope that each name is looked up in."""

    def __init__(self, resolver: NameResolver, module: Module, file: str, hook_lines: Mapping[int, int] | None) -> None:
        self.resolver = resolver
        self.module = module
        self.file = file
        self.hook = hook_lines is not None
        self.hook_lines = hook_lines
        self.scope = Scope(module=module)
        self.qualname: list[str] = []
        self.caught_kinds: frozenset[str] = frozenset()
        self.found: list[Reference] = []

    def _add(
        self, node: ast.AST, kind: str, what: str, problems: Iterable[str] = (), names: Iterable[str] = ()
    ) -> None:
        if kind in ("call", "attribute"):
            what = f"{'.'.join(self.qualname) or '<module>'}: {what}"
        where = f"{self.file}:{self._line(node)}"
        uncaught = [] if kind in self.caught_kinds else [problem for problem in problems if problem]
        for problem in dict.fromkeys(uncaught or [""]):
            reference = Reference(where=where, kind=kind, what=what, problem=problem, names=tuple(names))
            if reference not in self.found:
                self.found.append(reference)

    def _line(self, node: ast.AST) -> int:
        """Return a node's line in the file; of a hook the first that it adds to the node, or 0 if it adds none."""
        first: int = getattr(node, "lineno", 0)
        if self.hook_lines is None:
            return first
        lines = (self.hook_lines.get(line, 0) for line in range(first, (getattr(node, "end_lineno", 0) or first) + 1))
        return next(filter(None, lines), 0)

    def visit(self, node: ast.AST) -> None:
        """Visit a node, unless it is code that no hook changes in a file where only a hook is asked about."""
        if not self.hook or not hasattr(node, "lineno") or self._line(node):
            super().visit(node)

    def generic_visit(self, node: ast.AST) -> None:
        """Visit what is in a node and may need something: most of it cannot."""
        for name in node._fields:
            value = getattr(node, name, None)
            items = value if isinstance(value, list) else (value,)
            self.visit_all(item for item in items if isinstance(item, ast.AST) and not isinstance(item, _LEAVES))

    def visit_all(self, nodes: Iterable[ast.AST]) -> None:
        """Visit nodes in turn, up to a statement after which the release runs none of them."""
        for node in nodes:
            self.visit(node)
            if self._ends(node):
                return

    # Scopes.

    @contextmanager
    def _enter(self, name: str, scope: Scope) -> Iterator[None]:
        outer, self.scope = self.scope, scope
        self.qualname.append(name)
        yield
        self.scope = outer
        self.qualname.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        cls = Symbol(module=self.module, node=node)
        self.visit_all([*node.decorator_list, *node.bases, *node.keywords])
        with self._enter(node.name, Scope(module=self.module, parent=self.scope, enclosing_class=cls)):
            if not self.hook:  # how upstream's classes derive from one another is left to upstream
                self._check_overrides(cls, node)
            self.visit_all(node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.visit_all([*node.decorator_list, node.args, *([node.returns] if node.returns else [])])
        with self._enter(node.name, self._function_scope(node)):
            self.visit_all(node.body)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit(node.args)
        with self._enter("<lambda>", self._function_scope(node)):
            self.visit(node.body)

    def _function_scope(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> Scope:
        bindings, cls, receiver = collect_locals(node, self.module.package), self.scope.enclosing_class, {}
        is_member = cls is not None and node in getattr(cls.node, "body", ())
        if cls is not None and is_member and node.args.args and member_kind(node) != "staticmethod":
            is_instance = member_kind(node) != "classmethod"
            receiver = {node.args.args[0].arg: Symbol(module=cls.module, node=cls.node, is_instance=is_instance)}
        return Scope(module=self.module, bindings=bindings, receiver=receiver, parent=self.scope, enclosing_class=cls)

    # Code that the release does not run, or whose failure is caught.

    def visit_If(self, node: ast.If) -> None:
        self._visit_branches(node.test, node.body, node.orelse)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._visit_branches(node.test, [node.body], [node.orelse])

    def _visit_branches(self, test: ast.expr, body: Iterable[ast.AST], orelse: Iterable[ast.AST]) -> None:
        self.visit(test)
        value = evaluate_condition(self.resolver, self.scope, test)
        self.visit_all(body if value is not False else ())
        self.visit_all(orelse if value is not True else ())

    def _ends(self, node: ast.AST) -> bool:
        """Tell whether the release leaves a block at a statement; where only a hook is asked about, one of the hook."""
        if not self._line(node):
            return False
        if not isinstance(node, ast.If):
            return isinstance(node, (ast.Return, ast.Raise, ast.Continue, ast.Break))
        value = evaluate_condition(self.resolver, self.scope, node.test)
        return any(map(self._ends, node.body if value else node.orelse if value is False else ()))

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for part in node.values:
            self.visit(part)
            if evaluate_condition(self.resolver, self.scope, part) is isinstance(node.op, ast.Or):
                return

    def visit_Try(self, node: ast.Try) -> None:
        outer = self.caught_kinds
        for handler in node.handlers:
            if not any(isinstance(item, ast.Raise) for item in ast.walk(handler)):
                types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
                names = ["Exception" if item is None else ast.unparse(item) for item in types]
                self.caught_kinds = self.caught_kinds.union(*(_KINDS_CAUGHT_BY.get(name, set()) for name in names))
        self.visit_all(node.body)
        self.caught_kinds = outer
        for block in (node.handlers, node.orelse, node.finalbody):
            self.visit_all(block)

    # Imports.

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._check_import(node, alias.name, None)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = absolute_module(node, self.module.package)
        for alias in node.names:
            self._check_import(node, module, None if alias.name == "*" else alias.name)

    def _check_import(self, node: ast.stmt, module: str, name: str | None) -> None:
        if not is_sglang(module):
            return
        problem = ""
        if self.resolver.module(module) is None:
            problem = f"there is no module {module}{self._moved_to(name)}"
        elif name is not None and not self.resolver.has(module, name):
            problem = f"{module} has no `{name}`{self._moved_to(name)}"
        names = [f"{module}:{name}"] if name and self._of_upstream(self.resolver.module(module)) else []
        self._add(node, "import", f"{module}.{name}" if name else module, [problem], names)

    def _moved_to(self, name: str | None) -> str:
        """Say where else in the release something of this name is defined, in the file whose name is most alike."""
        if name is None or "import" in self.caught_kinds:  # nobody would read it
            return ""
        defined = re.compile(rf"^(?:class|def|async def) {name}\b|^{name}\s*[:=]".encode(), re.MULTILINE)
        sources = self.resolver.sources
        files = [file for file in sources.holding(name) if defined.search(sources.read(file) or b"")]
        modules = [module_name(file) for file in files]
        closest = difflib.get_close_matches(self.module.name, modules, 1, 0)
        return f"; moved to {closest[0]}?" if closest else ""

    # Calls and attributes.

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if last_name(node.func) == "getattr" and len(node.args) == 2 and isinstance(node.args[1], ast.Constant):
            self._check_access(node, node.args[0], str(node.args[1].value))
        problems, names = [], []
        for symbol in self.resolver.infer(self.scope, node.func):
            taken = call_signatures(self.resolver, symbol) if self._is_upstream_call(symbol) else []
            if taken and symbol.module is not None:
                mismatches = [call_mismatch(each, node, check_names=not self.hook) for each in taken]
                problems += [f"{symbol.module.name}.{symbol.name}: {text}" if text else "" for text in mismatches]
                if self._of_upstream(symbol.module) and not (symbol.is_instance or symbol.is_bound):
                    names.append(f"{symbol.module.name}:{symbol.name}")
        if problems:
            self._add(node, "call", f"{ast.unparse(node.func)}()", problems, names)

    def _is_upstream_call(self, symbol: Symbol) -> bool:
        """Say whether what a call runs is upstream's: the constructor of a class, `forward` of an object."""
        if isinstance(symbol.node, ast.ClassDef):
            method = "forward" if symbol.is_instance else "__init__"
            symbol = next(self.resolver.defining_classes(symbol, method), symbol)
        return symbol.module is not None and (self.hook or not symbol.module.in_overlay)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            self._check_access(node, node.value, node.attr)
        elif isinstance(node.ctx, ast.Store):
            self._check_assignment(node)

    def _check_access(self, node: ast.expr, value: ast.expr, name: str) -> None:
        """Check that upstream has an attribute, unless its owner is unknown or the overlay defines the attribute."""
        owners = self.resolver.infer(self.scope, value)
        if UNKNOWN in owners or not any(self._upstream_bases(owner) for owner in owners):
            return
        if self.hook and any(self._may_have_more(owner) for owner in owners):
            return
        classes = [next(self.resolver.defining_classes(owner, name), UNKNOWN) for owner in owners]
        if self.hook or not any(cls.module and cls.module.in_overlay for cls in classes):
            has = set(classes) != {UNKNOWN} or self.resolver.resolve_attribute(owners, name)
            problem = "" if has else self._missing(owners[0], name)
            defining = [_member(cls, name) for cls in classes if self._of_upstream(cls.module)]
            of_modules = [owner for owner in owners if isinstance(owner.node, ast.Module)]
            defining += [f"{owner.name}:{name}" for owner in of_modules if self._of_upstream(owner.module)]
            self._add(node, "attribute", f"{ast.unparse(value)}.{name}", [problem], defining)

    def _check_assignment(self, node: ast.Attribute) -> None:
        """Check that an attribute that the overlay sets is upstream's, or one of `self` that the overlay reads."""
        if self.hook:
            return  # upstream's classes are the hook's own to extend
        owners, cls = self.resolver.infer(self.scope, node.value), self.scope.enclosing_class
        for owner in owners if UNKNOWN not in owners else ():
            bases = [base for base in self._upstream_bases(owner) if isinstance(base.node, ast.ClassDef)]
            has = any(node.attr in self.resolver.members(base) for base in bases)
            has = has or self.resolver.foreign_has(owner, node.attr)
            is_own = cls is not None and owner.node is cls.node
            if bases and (has or not is_own or node.attr not in self.resolver.overlay.accessed_attributes):
                problem = "" if has else self._missing(bases[0], node.attr)
                self._add(node, "attribute", f"{ast.unparse(node)} =", [problem])

    # Overrides.

    def _check_overrides(self, cls: Symbol, node: ast.ClassDef) -> None:
        """Check what a class defines that upstream's bases define, or should, because nothing else would use it."""
        bases = self._upstream_bases(cls)
        for name, (*_, ours) in collect_bindings(node.body, self.module.package)[0].items() if bases else ():
            if name == "__init__" and node.name in self.resolver.overlay.called_names:
                continue  # the overlay constructs these objects, upstream does not
            place = ours if isinstance(ours, ast.AST) else node
            base = next((base for base in bases if name in self.resolver.members(base)), None)
            if base is not None:
                every = self.resolver.definitions(base, name)
                problems = [problem for theirs in every for problem in _override_problems(ours, theirs)]
                self._add(place, "override", f"{node.name}.{name}", problems, [_member(base, name)])
            elif not (name.startswith("__") or self.resolver.foreign_has(cls, name) or self._used(name)):
                self._add(place, "override", f"{node.name}.{name}", [self._missing(bases[0], name)])

    def _used(self, name: str) -> bool:
        """Tell whether the overlay reads a name, or upstream asks what serves for it by `hasattr` or `getattr`."""
        if name in self.resolver.overlay.accessed_attributes:
            return True
        asked = re.compile(rf"""\b(?:has|get)attr\([^()]*,\s*["']{name}["']""".encode())
        sources = self.resolver.sources
        return any(held and asked.search(sources.read(file) or b"") for file, held in sources.words_in([name], SERVING))

    def _of_upstream(self, module: Module | None) -> bool:
        return module is not None and not module.in_overlay

    def _upstream_bases(self, owner: Symbol) -> list[Symbol]:
        """Return what upstream defines of an owner: the module, or the classes in the order in which Python looks."""
        every = self.resolver.mro(owner) if isinstance(owner.node, ast.ClassDef) else [owner]
        known = isinstance(owner.node, (ast.ClassDef, ast.Module))
        return [base for base in every if known and base.module and (self.hook or not base.module.in_overlay)]

    def _may_have_more(self, owner: Symbol) -> bool:
        """Say whether something may have attributes that its class does not show: a subclass's, or a foreign base's."""
        cls = self.scope.enclosing_class
        is_own = cls is not None and owner.node is cls.node
        foreign = isinstance(owner.node, ast.ClassDef) and UNKNOWN in self.resolver.mro(owner)
        return owner.is_instance or is_own or foreign

    def _missing(self, owner: Symbol, name: str) -> str:
        """Say that there is no such attribute, and which other one has nearly this name."""
        names = set(owner.module.bindings) if owner.module else set()
        if isinstance(owner.node, ast.ClassDef):
            names = {name for base in self._upstream_bases(owner) for name in self.resolver.members(base)}
        closest = difflib.get_close_matches(name, names, 1)
        return f"{owner.name} has no `{name}`{f'; now `{closest[0]}`?' if closest else ''}"


def _member(cls: Symbol, name: str) -> str:
    """Return how `Reference.names` has a member of a class."""
    return f"{cls.module.name if cls.module else ''}:{cls.name}.{name}"


def _override_problems(ours: Binding, theirs: Binding) -> Iterator[str]:
    if not isinstance(ours, FUNCTION):
        return
    if member_kind(ours) != member_kind(theirs):
        yield f"it is a {member_kind(ours)} here and a {member_kind(theirs)} upstream"
    elif isinstance(theirs, FUNCTION) and type(ours) is not type(theirs):
        yield "only one of ours and upstream's is async"
    elif isinstance(theirs, FUNCTION) and member_kind(ours) != "property":
        skip = int(member_kind(ours) != "staticmethod")
        yield from override_mismatch(function_signature(ours, skip), function_signature(theirs, skip))
