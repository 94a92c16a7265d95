"""What names stand for, and the modules and scopes in which they are looked up."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from overlay_tools.api_check.bindings import Bindings, collect_module


@dataclass(frozen=True, kw_only=True, slots=True)
class Symbol:
    """What a name may stand for in one release.

    `node`: the syntax tree of a module, class or function, or the expression of a value; None if it is defined outside
    sglang or cannot be told. `module`: the module that defines it. `is_instance`: it is an object of the class `node`,
    not the class. `via_super`: it is that object as `super()` sees it, without what the class itself defines.
    `is_bound`: it is a function whose first parameter is filled in, like a method taken from an object.
    """

    module: Module | None = None
    node: ast.AST | None = None
    is_instance: bool = False
    via_super: bool = False
    is_bound: bool = False

    @property
    def name(self) -> str:
        """Return its name as a message shows it."""
        return getattr(self.node, "name", self.module.name if self.module else "?")


UNKNOWN = Symbol()


@dataclass(eq=False, kw_only=True)
class Module:
    """One file of the release or, if `in_overlay`, of the overlay; or a folder without `__init__.py`, which is empty.

    `path`: in the wheel; `tree`: its statements, without the `definitions` that are parsed when they are asked for;
    `bindings`: what all of them bind; `star_imports`: the modules of which it takes all names.
    """

    name: str
    path: str
    in_overlay: bool
    tree: ast.Module
    definitions: Callable[[Bindings, str], Bindings] | None = None
    bindings: Bindings = field(init=False)
    star_imports: list[str] = field(init=False)

    def __post_init__(self) -> None:
        known, self.star_imports = collect_module(self.tree, self.package)
        self.bindings = self.definitions(known, self.package) if self.definitions else known

    @property
    def package(self) -> str:
        """Return the package that relative imports start from."""
        return self.name if self.path.endswith("__init__.py") else self.name.rpartition(".")[0]

    def exports(self, name: str) -> bool:
        """Say whether `from module import *` imports a name."""
        (listed, *_) = self.bindings.get("__all__", [None])
        if isinstance(listed, (ast.List, ast.Tuple)):
            return any(isinstance(item, ast.Constant) and item.value == name for item in listed.elts)
        return not name.startswith("_")


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Scope:
    """Where code of a `module` looks names up: here, then in the `parent` scopes, then in the module.

    `bindings`: the names of the function; `receiver`: the first parameter of a method, `self` or `cls`, and what it
    stands for; `enclosing_class`: the class whose body or method the code is in.
    """

    module: Module
    bindings: Bindings = field(default_factory=dict)
    receiver: Mapping[str, Symbol] = field(default_factory=dict)
    parent: Scope | None = None
    enclosing_class: Symbol | None = None


def is_sglang(module: str) -> bool:
    """Say whether a module is one that the release or the overlay must have."""
    return module.partition(".")[0] == "sglang"
