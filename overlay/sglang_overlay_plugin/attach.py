"""Attach to an SGLang as it was published: in this process, and in those that it spawns.

What the overlay's own wheel has in patched modules, its hooks, is done here when these modules are imported.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing import spawn
from pathlib import Path
from types import ModuleType

import sglang_overlay_plugin_start as start
from sglang_overlay_plugin_start import PluginError

from sglang_overlay_plugin.checks import check

UPSTREAMS_PROCESSORS = "sglang.srt.multimodal.processors"


def attach() -> None:
    """Attach this process, and those that it spawns from now on; upstream finds this by its entry point.

    It raises nothing, which upstream would log and serve on without the plugin: a server is stopped where it makes its
    model.
    """
    _carry_to_spawned()
    start.watch(by_name=True)


@functools.cache
def _carry_to_spawned() -> None:
    preparation_data = spawn.get_preparation_data

    def carry(name: str) -> dict[str, object]:
        return {**preparation_data(name), start.NAME: _Carrier()}

    spawn.get_preparation_data = carry


class _Carrier:
    """Attaches the process in which it is unpickled.

    A spawned process unpickles what is to be prepared there before it imports anything of the program. Where the plugin
    is not in site-packages, nothing else attaches it before upstream loads plugins, which not all of its processes do.
    """

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return attach, ()


def finish(module: ModuleType) -> None:
    """Attach to one of the modules of `start.GATES`, whose code has run.

    Raises PluginError where `check` does, and where Ray is to start processes that would lack the plugin; and
    OverlayError if a model cannot be registered, or another plugin or the drop-in wheel has one of its names.
    """
    check()
    _claim_architectures()
    if (attach_to := _WHEN_IMPORTED.get(module.__name__)) is not None:
        attach_to(module)


def _claim_architectures() -> None:
    """Take the architectures of this plugin's models, after the drop-in wheel, where that is installed, has its own."""
    for package in ("sglang.srt", start.NAME):
        if find_spec(f"{package}.overlay_registry") is not None:
            importlib.import_module(f"{package}.overlay_registry").claim_architectures()


def _install(module: ModuleType) -> None:
    from sglang_overlay_plugin import overlay_registry

    overlay_registry.install(module.multimodal_model_archs)


def _resolve(module: ModuleType) -> None:
    from sglang_overlay_plugin import overlay_registry

    upstreams: Callable[[object], tuple[type, str]] = module.get_model_architecture

    @functools.wraps(upstreams)
    def get_model_architecture(model_config: object) -> tuple[type, str]:
        return overlay_registry.resolve_model(model_config) or upstreams(model_config)

    _replace("get_model_architecture", upstreams, get_model_architecture)


def _set_defaults(module: ModuleType) -> None:
    from sglang_overlay_plugin import overlay_registry

    kind = module.ServerArgs
    name = "resolve_once" if hasattr(kind, "resolve_once") else "__post_init__"  # the first from 0.5.19 on
    upstreams: Callable[[object], None] = getattr(kind, name)

    @functools.wraps(upstreams)
    def resolve(server_args: object) -> None:
        if not getattr(server_args, "_resolution_finished", False):
            overlay_registry.default_arguments(server_args)
        upstreams(server_args)

    setattr(kind, name, resolve)


def _check_requests(module: ModuleType) -> None:
    from sglang_overlay_plugin import overlay_registry

    upstreams = module.TokenizerManager._validate_one_request

    @functools.wraps(upstreams)
    def validate(tokenizer_manager: object, request: object, input_ids: object) -> None:
        overlay_registry.check_request(tokenizer_manager, request)
        upstreams(tokenizer_manager, request, input_ids)

    module.TokenizerManager._validate_one_request = validate


def _register_models(module: ModuleType) -> None:
    if start.external_package() is None:  # else upstream has done it
        try:
            module.ModelRegistry.register(f"{start.NAME}.models")
        except ValueError as error:  # so upstream reports two classes of one name
            raise PluginError(f"sglang itself, or what else is loaded, has a model of this name: {error}") from error


def _import_processors(module: ModuleType) -> None:
    from sglang_overlay_plugin import overlay_claims

    upstreams = module.import_processors

    @functools.wraps(upstreams)
    def import_processors(package_name: str, overwrite: bool = False) -> None:
        upstreams(package_name, overwrite)
        if package_name == UPSTREAMS_PROCESSORS and (Path(__file__).parent / "multimodal" / "processors").is_dir():
            upstreams(f"{start.NAME}.multimodal.processors", overwrite)
            own = {
                model.__name__
                for model, processor in module.PROCESSOR_MAPPING.items()
                if processor.__module__.partition(".")[0] == start.NAME
            }
            overlay_claims.claim("processor of", *own)

    _replace("import_processors", upstreams, import_processors)


def _replace(name: str, upstreams: Callable[..., object], ours: Callable[..., object]) -> None:
    for place, user in list(sys.modules.items()):  # some may have taken it from its module already
        if place.startswith("sglang.") and vars(user).get(name) is upstreams:
            setattr(user, name, ours)


def _check_ray(module: ModuleType) -> None:
    if not start.with_python:
        raise PluginError(
            f"Ray would start its processes without it; install {start.DISTRIBUTION} in site-packages, where Python"
            f" reads {start.NAME}.pth when it starts"
        )


_WHEN_IMPORTED: dict[str, Callable[[ModuleType], None]] = {
    "sglang.srt.model_loader.utils": _resolve,
    "sglang.srt.configs.model_config": _install,
    "sglang.srt.server_args": _set_defaults,
    "sglang.srt.managers.tokenizer_manager": _check_requests,
    "sglang.srt.models.registry": _register_models,
    "sglang.srt.managers.multimodal_processor": _import_processors,
    "sglang.srt.ray.engine": _check_ray,
}
