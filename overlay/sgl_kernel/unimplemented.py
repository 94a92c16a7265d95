"""Clear errors for what upstream's kernel package has and this one has not."""

from __future__ import annotations

from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import NoReturn


def unimplemented(name: str) -> Callable[..., NoReturn]:
    """Return a function that takes anything and raises NotImplementedError naming ``name``.

    Upstream imports many kernels by name that a CPU never calls, so only a call may fail.
    """

    def call(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(f"{name} has no CPU implementation")

    call.__name__ = call.__qualname__ = name
    return call


class SubmoduleFinder:
    """Last finder of all: names a submodule of ``sgl_kernel`` that is not there.

    The error is the ModuleNotFoundError that upstream's ``try: import`` guards expect.
    """

    @staticmethod
    def find_spec(fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Raise for a submodule of ``sgl_kernel``; find nothing else."""
        if fullname.startswith("sgl_kernel."):
            raise ModuleNotFoundError(f"{fullname} has no CPU implementation", name=fullname)
        return None
