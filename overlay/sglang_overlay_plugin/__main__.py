"""Say whether the plugin works in this environment.

python -m sglang_overlay_plugin doctor
"""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pkgutil import resolve_name

from sglang_overlay_plugin import attach


class Doctor:
    """Prints one line a finding, and remembers whether all were good."""

    def __init__(self) -> None:
        self.healthy = True

    def say(self, good: bool, what: str) -> None:
        """Print a finding."""
        self.healthy &= good
        print(f"{'ok    ' if good else 'FAILED'} {what}", flush=True)

    @contextmanager
    def finding(self, what: str) -> Iterator[None]:
        """Print `what` as good if the block ends, or with the reason if it raises."""
        try:
            yield
        except (Exception, SystemExit) as error:
            self.say(False, f"{what}: {type(error).__name__}: {error}")
        else:
            self.say(True, what)


def doctor() -> bool:
    """Print what was found, each hook and each registration and whether it took; give whether all did."""
    found = Doctor()
    with found.finding("this plugin and the installed sglang"):
        own, (version, folder) = attach.own_distribution(), attach.upstream()
        print(f"       {attach.DISTRIBUTION} {own.version}, proven on sglang {', '.join(attach.proven_releases())}")
        print(f"       sglang {version} in {folder}")
        attach.check()
    if not found.healthy:
        return False
    _say_how_it_is_loaded(found)
    with found.finding("registration in this process"):
        attach.register()
    for name, (place, _) in attach.TARGETS.items():
        with found.finding(f"hook: {name}.{place}"):
            module = importlib.import_module(name)
            if place in attach.REPLACED and not hasattr(getattr(module, place), "__wrapped__"):
                raise attach.PluginError("it is upstream's own function")
    if found.healthy:
        _say_of_models(found)
    return found.healthy


def _say_how_it_is_loaded(found: Doctor) -> None:
    if (name := attach.external_package()) is not None:
        found.say(True, f"loaded by SGLANG_EXTERNAL_MODEL_PACKAGE={name}")
    try:
        from sglang.srt import plugins
    except ImportError:  # before 0.5.11
        if name is None:
            found.say(False, f"nothing loads it: set SGLANG_EXTERNAL_MODEL_PACKAGE={attach.PACKAGE}.models")
        return
    wanted = f"{attach.PACKAGE}.attach:serve_plugin"
    points = entry_points(group=attach.ENTRY_POINTS)
    there = any(point.value == wanted for point in points)
    found.say(there, f"entry point in {attach.ENTRY_POINTS}: {', '.join(point.value for point in points) or 'none'}")
    chosen = os.environ.get("SGLANG_PLUGINS")
    if chosen and attach.PACKAGE not in [word.strip() for word in chosen.split(",")]:
        found.say(False, f"SGLANG_PLUGINS={chosen} leaves {attach.PACKAGE} out")
    with found.finding("upstream's load_plugins"):
        plugins.load_plugins()


def _say_of_models(found: Doctor) -> None:
    """Say of each row of the overlay whether upstream finds its configuration and classes."""
    from sglang.srt.configs.model_config import multimodal_model_archs
    from sglang.srt.managers import multimodal_processor
    from sglang.srt.models.registry import ModelRegistry
    from transformers import CONFIG_MAPPING

    from sglang_overlay_plugin.overlay_registry import MODELS

    for row in MODELS:
        if row.config is not None:
            with found.finding(f"configuration: {row.config}"):
                config = resolve_name(row.config)
                if CONFIG_MAPPING[config.model_type] is not config:
                    raise attach.PluginError(f"model_type {config.model_type} is that of another class")
        if row.multimodal:
            found.say(row.architecture in multimodal_model_archs, f"multimodal architecture: {row.architecture}")
            multimodal_processor.import_processors(attach.UPSTREAMS_PROCESSORS)
            taken = {model.__name__ for model in multimodal_processor.PROCESSOR_MAPPING}
            found.say(row.architecture in taken, f"processor of {row.architecture}")
        for reference in filter(None, (row.model, row.draft)):
            with found.finding(f"model: {reference}"):
                model = resolve_name(reference)
                if (held := ModelRegistry.models.get(model.__name__)) is not model:
                    raise attach.PluginError(f"upstream's registry holds {held} under this name")


if __name__ == "__main__":
    if sys.argv[1:] != ["doctor"]:
        sys.exit(f"usage: python -m {attach.PACKAGE} doctor")
    sys.exit(0 if doctor() else 1)
