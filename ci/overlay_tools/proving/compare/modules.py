"""The first module in which an engine and a reference model differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_FAR = 1e-4  # of the size of a module's output, in float32
_TIMES = 2.0  # the error of Transformers that a module may have in another dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class Module:
    """A module of both sides, named from its layer on: how far their outputs are apart, relative to their size.

    `engine`: the engine's name of it, None where it has none that is called. `error`: None where outputs cannot be
    compared. `own`: the error of Transformers in the dtype of the engine, None in float32.
    """

    name: str
    engine: str | None
    error: float | None
    own: float | None

    @property
    def limit(self) -> float:
        """Return how large the error may be."""
        return max(_FAR, _TIMES * (self.own or 0.0))

    @property
    def differs(self) -> bool:
        """Tell whether the error is larger than it may be."""
        return self.error is not None and not self.error <= self.limit

    def holds(self, other: Module) -> bool:
        """Tell whether another module is a part of this one."""
        return other.name.startswith(f"{self.name}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Where two models part.

    `layer`: empty outside the layers; `module`: the module of it, None if no module differs; `part`: the first thing in
    that module that differs, the module itself if nothing in it does; `modules`: all that were compared, in order.
    """

    layer: str
    module: Module | None
    part: Module | None
    modules: list[Module]

    @property
    def words(self) -> str:
        """Return it as a sentence."""
        if self.module is None or self.part is None:
            return "No module differs by more than rounding does: what is wrong is in none that both sides have."
        where = f"The first module that differs is {self.module.name}"
        if self.module.name == self.layer:
            where = f"The first layer that differs is {self.layer}, and no module in it does"
        elif self.part != self.module:
            where += f", in it {self.part.name.removeprefix(f'{self.module.name}.')}"
        return f"{where}: by {self.module.error:.2g} of its output's size, which may be {self.module.limit:.2g}."


def first_difference(rows: Sequence[Mapping[str, Any]]) -> Difference:
    """Find where two models part.

    Some modules compute the same in another way, so that their outputs differ where nothing is wrong: routers that give
    scores or weights, embeddings that are scaled later. So the search begins behind the last layer that agrees, or the
    norm after it, and passes over a module that differs while what it is a part of does not, or while its like in a
    layer that agrees differs as well.
    Parameters: a row for each module of the reference model, in the order in which they finish: the fields of Module.
    """
    modules = [Module(**row) for row in rows]
    compared = [module for module in modules if module.error is not None]
    agreeing = [n for n, module in enumerate(compared) if _shows_all(module.name) and not module.differs]
    behind = compared[agreeing[-1] + 1 :] if agreeing else compared
    before = compared[: agreeing[-1]] if agreeing else []
    other_ways = {_role(module) for module in before if module.differs}
    whole = [module for module in compared if not module.differs]
    differing = [
        module
        for module in behind
        if module.differs and _role(module) not in other_ways and not any(other.holds(module) for other in whole)
    ]
    if not differing:
        return Difference(layer="", module=None, part=None, modules=modules)
    part = differing[0]
    outer = [module for module in differing if module.holds(part) and not _is_layer(module.name)]
    names = part.name.split(".")
    layer = ".".join(names[:2]) if len(names) > 1 else ""
    return Difference(layer=layer, module=outer[-1] if outer else part, part=part, modules=modules)


def _is_layer(name: str) -> bool:
    return name.count(".") == 1 and name.startswith("layers.")


def _shows_all(name: str) -> bool:
    """Tell whether a module gives what depends on all before it: a layer, or the norm of what the last one gave."""
    return _is_layer(name) or name.rpartition(".")[2] == "input_layernorm"


def _role(module: Module) -> str:
    """Return a module's name without the number of its layer."""
    return ".".join(part for part in module.name.split(".") if not part.isdigit())
