"""Run code around the first import of named modules."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType


class ImportHook(importlib.abc.MetaPathFinder):
    """Calls ``edit(name, source) -> source`` before and ``finish(module)`` after a named module's code runs.

    A module imported already only gets ``finish``: at once, or, while its own code is still running, at the first
    import after that.

    :param names: full names of the modules.
    """

    def __init__(self, names: Iterable[str], edit: Callable[[str, str], str], finish: Callable[[ModuleType], None]):
        self._names, self._edit, self._finish = frozenset(names), edit, finish
        self._running: list[ModuleType] = []

    def install(self) -> None:
        """Start watching imports."""
        self._running = [sys.modules[name] for name in sorted(self._names & sys.modules.keys())]
        self._finish_imported()
        sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a named module as Python would, but loaded so that the calls are made."""
        self._finish_imported()
        if fullname not in self._names:
            return None
        # Those after this one, as Python would ask them: what a plugin does with the module is done too.
        finders = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in finders)), None)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            _change(spec.loader, self._edit, self._finish)
        return spec

    def _finish_imported(self) -> None:
        waiting, self._running = self._running, []
        for module in waiting:
            if getattr(module.__spec__, "_initializing", False):
                self._running.append(module)
            else:
                self._finish(module)


def _change(loader: SourceFileLoader, edit: Callable[[str, str], str], finish: Callable[[ModuleType], None]) -> None:
    """Let a loader make the calls, besides all that others have made it do."""
    get_code, execute = loader.get_code, loader.exec_module

    def get_edited_code(fullname: str) -> CodeType | None:
        source: str = loader.get_source(fullname)  # type: ignore[assignment]
        edited = edit(fullname, source)
        # The cached bytecode is that of the file as it is.
        return get_code(fullname) if edited == source else loader.source_to_code(edited, loader.path)

    def execute_and_finish(module: ModuleType) -> None:
        execute(module)
        finish(module)

    loader.get_code = get_edited_code  # type: ignore[method-assign]
    loader.exec_module = execute_and_finish  # type: ignore[method-assign]
