"""Attach the overlay to an SGLang as it was published, in this process and in those that it spawns.

What the overlay's own wheel has in two patched modules, its hooks, is done here when these modules are imported. No
module of sglang is imported for it: this runs before anything else in a spawned process, and at Python's start.
"""

import ast
import csv
import functools
import importlib.abc
import importlib.machinery
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from multiprocessing import spawn
from pathlib import Path
from types import ModuleType

DISTRIBUTION = "sglang-overlay-plugin"
PACKAGE = __name__.partition(".")[0]
ENTRY_POINTS = "sglang.srt.plugins"
UPSTREAMS_PROCESSORS = "sglang.srt.multimodal.processors"
ALLOW_UNPROVEN = "SGLANG_OVERLAY_ALLOW_UNPROVEN"

_log = logging.getLogger(__name__)


class PluginError(RuntimeError):
    """Say why this SGLang cannot serve the overlay's models as they should be served."""


def register() -> None:
    """Let this process, and those that it spawns from now on, serve the overlay's models.

    Call it before an engine or server is made; a second call changes nothing.
    Raises PluginError if this plugin is not whole, this release of sglang is not one that it is proven on (unless
    SGLANG_OVERLAY_ALLOW_UNPROVEN=1), is the overlay's own wheel, or lacks a place where the plugin attaches; and
    OverlayError if a model cannot be registered.
    """
    check()
    attach()


def serve_plugin() -> None:
    """Register for upstream's `load_plugins`, which logs an exception and serves on without the plugin.

    Raises SystemExit, with the reason, where `register` raises.
    """
    try:
        register()
    except Exception as error:
        raise SystemExit(f"{DISTRIBUTION}: {type(error).__name__}: {error}") from error


def at_python_start() -> None:
    """Attach where SGLANG_EXTERNAL_MODEL_PACKAGE names this package; called by the startup file in site-packages.

    Upstream reads that variable when it loads a model, long after it has read the model's configuration.
    """
    if external_package() is not None:
        attach()


def external_package() -> str | None:
    """Give SGLANG_EXTERNAL_MODEL_PACKAGE if it names a package of this plugin."""
    name = os.environ.get("SGLANG_EXTERNAL_MODEL_PACKAGE", "")
    return name if name.partition(".")[0] == PACKAGE else None


@functools.cache
def check() -> None:
    """Raise PluginError where `register` would, before anything is changed."""
    own = own_distribution()
    # From Python 3.12 on, `files` leaves out what is missing. Caches may come and go.
    recorded = [row[0] for row in csv.reader((own.read_text("RECORD") or "").splitlines()) if row]
    missing = [name for name in recorded if "__pycache__" not in name and not Path(own.locate_file(name)).exists()]  # type: ignore[arg-type]
    if not recorded:
        missing = ["its RECORD"]
    if missing:
        raise PluginError(f"{DISTRIBUTION} lacks {', '.join(missing)}; install it anew")
    version, folder = upstream()
    if (folder / "srt" / "overlay_registry.py").exists():
        raise PluginError(
            f"sglang {version} in {folder} is the overlay's own wheel, which has these models;"
            f" uninstall {DISTRIBUTION}, or install sglang=={version.partition('+')[0]} as it was published"
        )
    if (name := external_package()) is not None and name != f"{PACKAGE}.models":
        raise PluginError(f"SGLANG_EXTERNAL_MODEL_PACKAGE is {name}; it must be {PACKAGE}.models")
    for module, (name, _) in TARGETS.items():
        file = folder.joinpath(*module.split(".")[1:]).with_suffix(".py")
        if name not in _names_defined_in(file):
            raise PluginError(f"{file} of sglang {version} defines no {name}, where {DISTRIBUTION} attaches")
    if version not in proven_releases():
        unproven = (
            f"{DISTRIBUTION} {own.version} is not proven on sglang {version}, but on {', '.join(proven_releases())}"
        )
        if os.environ.get(ALLOW_UNPROVEN) != "1":
            raise PluginError(f"{unproven}; {ALLOW_UNPROVEN}=1 lets it serve all the same")
        _log.warning("%s; %s=1 lets it serve", unproven, ALLOW_UNPROVEN)


def own_distribution() -> Distribution:
    """Give this plugin's own installed distribution."""
    try:
        return distribution(DISTRIBUTION)
    except PackageNotFoundError:
        raise PluginError(f"{PACKAGE} is importable, but {DISTRIBUTION} is not installed; install its wheel") from None


def proven_releases() -> list[str]:
    """List the releases of sglang that this plugin's metadata declares it proven on."""
    words = own_distribution().metadata.get("Keywords", "").split(",")  # type: ignore[attr-defined]  # until 3.12
    return [word.partition("==")[2] for word in words if word.startswith("sglang==")]


def upstream() -> tuple[str, Path]:
    """Give the version of the installed sglang and its folder, without importing it."""
    try:
        version = distribution("sglang").version
    except PackageNotFoundError:
        raise PluginError("sglang is not installed") from None
    spec = find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        raise PluginError(f"sglang {version} is installed, but cannot be imported")
    return version, Path(spec.submodule_search_locations[0])


def _names_defined_in(file: Path) -> set[str]:
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError) as error:
        raise PluginError(f"{file}, where {DISTRIBUTION} attaches, cannot be read: {error}") from error
    names = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def attach() -> None:
    """Attach to the modules of TARGETS: to those already imported now, to others when they are."""
    if any(isinstance(finder, _Watch) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Watch())
    preparation_data = spawn.get_preparation_data

    def carry(name: str) -> dict[str, object]:
        return {**preparation_data(name), PACKAGE: _Carrier()}

    spawn.get_preparation_data = carry
    for module in list(filter(None, map(sys.modules.get, TARGETS))):
        _finish(module)


class _Carrier:
    """Attaches the process in which it is unpickled.

    A spawned process unpickles what is to be prepared there before it imports anything of the program. Upstream loads
    plugins in some of its processes only, and not in the workers of its HTTP server in any release.
    """

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return attach, ()


class _Watch(importlib.abc.MetaPathFinder):
    """Finds the modules of TARGETS as the other finders do, and attaches to each when its code has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in TARGETS:
            return None
        finders = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in finders)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_finish(module: ModuleType) -> None:
                execute(module)
                _finish(module)

            spec.loader.exec_module = execute_and_finish  # type: ignore[method-assign]
        return spec


def _finish(module: ModuleType) -> None:
    check()  # not done yet where `at_python_start` or a spawning process attached
    TARGETS[module.__name__][1](module)


def _install(module: ModuleType) -> None:
    from sglang_overlay_plugin import overlay_registry

    overlay_registry.install(module.multimodal_model_archs)


def _resolve(module: ModuleType) -> None:
    from sglang_overlay_plugin import overlay_registry

    upstreams: Callable[[object], tuple[type, str]] = module.get_model_architecture

    @functools.wraps(upstreams)
    def get_model_architecture(model_config: object) -> tuple[type, str]:
        return overlay_registry.resolve_model(model_config) or upstreams(model_config)

    _replace(upstreams, get_model_architecture)


def _register_models(module: ModuleType) -> None:
    if external_package() is None:  # else upstream has done it
        try:
            module.ModelRegistry.register(f"{PACKAGE}.models")
        except ValueError as error:  # so upstream reports two classes of one name
            raise PluginError(f"another plugin, or sglang itself, has a model of this name: {error}") from error


def _import_processors(module: ModuleType) -> None:
    upstreams = module.import_processors

    @functools.wraps(upstreams)
    def import_processors(package_name: str, overwrite: bool = False) -> None:
        upstreams(package_name, overwrite)
        if package_name == UPSTREAMS_PROCESSORS and (Path(__file__).parent / "multimodal" / "processors").is_dir():
            upstreams(f"{PACKAGE}.multimodal.processors", overwrite)

    _replace(upstreams, import_processors)


def _replace(upstreams: Callable[..., object], ours: Callable[..., object]) -> None:
    name = upstreams.__name__
    for place, user in list(sys.modules.items()):  # some may have taken it from its module already
        if place.startswith("sglang.") and vars(user).get(name) is upstreams:
            setattr(user, name, ours)


REPLACED = ("get_model_architecture", "import_processors")

# The modules that the plugin attaches to: the name that each must define, and what is done once it is imported.
TARGETS: dict[str, tuple[str, Callable[[ModuleType], None]]] = {
    "sglang.srt.model_loader.utils": ("get_model_architecture", _resolve),  # before configurations that need it
    "sglang.srt.configs.model_config": ("multimodal_model_archs", _install),
    "sglang.srt.models.registry": ("ModelRegistry", _register_models),
    "sglang.srt.managers.multimodal_processor": ("import_processors", _import_processors),
}
