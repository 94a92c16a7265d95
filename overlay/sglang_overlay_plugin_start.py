"""Attach the plugin in each process that comes to serve a model, whatever has started it.

A line in site-packages calls `watch` whenever Python starts, in every program of the environment. So this module
imports nothing but what Python has imported by then, and nothing of the plugin before a program imports a module that
it attaches to. A plugin that is damaged, or not proven on the installed sglang, stops a server where that makes its
model, and no other program.
"""

import os
import sys

TYPE_CHECKING = False  # typing's own would have to be imported
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

NAME = "sglang_overlay_plugin"
DISTRIBUTION = "sglang-overlay-plugin"


class PluginError(RuntimeError):
    """Say why this SGLang cannot serve the overlay's models as they should be served."""


# The modules that the plugin attaches to: what a server calls of each, and cannot where the plugin fails.
GATES = {
    "sglang.srt.model_loader.utils": ("get_model_architecture",),
    "sglang.srt.utils.hf_transformers_utils": ("get_config",),  # some releases call it before they make a ModelConfig
    "sglang.srt.utils.hf_transformers.config": ("get_config",),
    "sglang.srt.configs.model_config": ("ModelConfig.__init__",),
    "sglang.srt.server_args": (),  # a server that makes no model needs no defaults
    "sglang.srt.managers.tokenizer_manager": (),  # a server that makes no model gets no requests
    "sglang.srt.models.registry": ("ModelRegistry.get_supported_archs", "ModelRegistry.resolve_model_cls"),
    "sglang.srt.managers.multimodal_processor": ("import_processors",),
    "sglang.srt.ray.engine": ("RayEngine._launch_subprocesses",),
}

with_python = False  # whether the line in site-packages has called `watch`: it does so in each Python, then
_by_name = False  # whether upstream has loaded the plugin, or the program has called `register`
refusals: "dict[str, str]" = {}  # why the plugin could not attach, by module
_finished: "set[str]" = set()
_importing: "set[str]" = set()


def watch(*, with_python: bool = False, by_name: bool = False) -> None:
    """Attach to the modules of GATES: to those already imported now, to others when they are."""
    globals()["with_python"] |= with_python
    globals()["_by_name"] |= by_name
    if not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())
    for module in [sys.modules[name] for name in GATES if name in sys.modules and name not in _importing]:
        _finish(module)


def left_out() -> bool:
    """Tell whether SGLANG_PLUGINS leaves the plugin out, here and in releases that do not know it."""
    chosen = [word.strip() for word in os.environ.get("SGLANG_PLUGINS", "").split(",")]
    return any(chosen) and NAME not in chosen


def external_package() -> "str | None":
    """Give SGLANG_EXTERNAL_MODEL_PACKAGE if it names a package of the plugin."""
    name = os.environ.get("SGLANG_EXTERNAL_MODEL_PACKAGE", "")
    return name if name.partition(".")[0] == NAME else None


def describe(error: Exception) -> str:
    """Say in words what an exception says: the plugin's own are sentences, others need the name of their class."""
    own = type(error).__module__.startswith(NAME)
    return str(error) if own else f"{DISTRIBUTION} is not whole; install it anew: {type(error).__name__}: {error}"


class _Watch:
    """Finds the modules of GATES as the other finders do, and attaches to each when its code has run."""

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if fullname not in GATES:
            return None
        # Those after this one, as Python would ask them: another plugin's among them asks those after it.
        finders = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in finders)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_finish(module: "ModuleType") -> None:
                _importing.add(fullname)
                try:
                    execute(module)
                finally:
                    _importing.remove(fullname)
                _finish(module)

            spec.loader.exec_module = execute_and_finish  # type: ignore[method-assign]
        return spec


def _finish(module: "ModuleType") -> None:
    if module.__name__ in _finished or (left_out() and not _by_name and external_package() is None):
        return
    _finished.add(module.__name__)
    try:
        import sglang_overlay_plugin.attach

        sglang_overlay_plugin.attach.finish(module)
    except Exception as error:
        if not isinstance(error, ModuleNotFoundError) or _is_installed():  # else only this file has been left behind
            _refuse(module, describe(error))


def _is_installed() -> bool:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution(DISTRIBUTION)
    except PackageNotFoundError:
        return False
    return True


def _refuse(module: "ModuleType", reason: str) -> None:
    """Let no server do with a module what GATES says."""
    refusals[module.__name__] = reason

    def refused(*arguments: object, **named: object) -> None:
        raise SystemExit(f"{DISTRIBUTION} stops this server: {reason}")

    for gate in GATES[module.__name__]:
        *owners, name = gate.split(".")
        owner: object = module
        for part in owners:
            owner = getattr(owner, part, None)
        if not hasattr(owner, name):
            refused()
        upstreams = getattr(owner, name)
        setattr(owner, name, refused)
        for place, user in list(sys.modules.items()):  # some may have taken it from its module already
            if place.startswith("sglang.") and getattr(user, "__dict__", {}).get(name) is upstreams:
                setattr(user, name, refused)
