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

import sglang_overlay_plugin_start as start

ENTRY_POINTS = "sglang.srt.plugins"
REPLACED = ("get_model_architecture", "import_processors")  # functions of upstream's that ours take the place of


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
        except SystemExit as error:
            self.say(False, f"{what}: {error}")
        except Exception as error:
            self.say(False, f"{what}: {start.describe(error)}")
        else:
            self.say(True, what)


def doctor() -> bool:
    """Print what was found, each hook and each registration and whether it took; give whether all did."""
    found = Doctor()
    with found.finding("this plugin and the installed sglang"):
        from sglang_overlay_plugin import attach, checks

        own = checks.own_distribution()
        print(f"       {start.DISTRIBUTION} {own.version}, proven on sglang {', '.join(checks.proven_releases())}")
        version, folder = checks.upstream()
        print(f"       sglang {version} in {folder}")
        checks.check()
    if not found.healthy:
        return False
    _say_how_it_is_loaded(found)
    with found.finding("registration in this process"):
        attach.attach()
    from sglang_overlay_plugin.overlay_claims import clashes

    for name, place in checks.PLACES.items():
        with found.finding(f"hook: {name}.{place}"):
            module = importlib.import_module(name)
            if name in start.refusals:
                raise start.PluginError(start.refusals[name])
            if place in REPLACED and not _is_ours(getattr(module, place)) and not clashes():
                raise start.PluginError("it is not this plugin's function")
    for clash in clashes() if found.healthy else ():
        found.say(False, clash)
    if found.healthy:
        _say_of_models(found)
    return found.healthy


def _is_ours(function: object) -> bool:
    """Tell whether a function is this plugin's, or another plugin's around it."""
    from sglang_overlay_plugin import attach

    while function is not None and getattr(function, "__globals__", None) is not vars(attach):
        function = getattr(function, "__wrapped__", None)
    return function is not None


def _say_how_it_is_loaded(found: Doctor) -> None:
    if (name := start.external_package()) is not None:
        found.say(True, f"SGLANG_EXTERNAL_MODEL_PACKAGE={name}")
    elif start.left_out():
        found.say(False, f"SGLANG_PLUGINS={os.environ['SGLANG_PLUGINS']} leaves {start.NAME} out")
    if start.with_python:
        found.say(True, f"loaded by {start.NAME}.pth, in each process")
    try:
        from sglang.srt import plugins
    except ImportError:  # before 0.5.11
        if not start.with_python:
            found.say(False, f"nothing loads it: install it in site-packages, where Python reads {start.NAME}.pth")
        return
    points = entry_points(group=ENTRY_POINTS)
    there = any(point.value == f"{start.NAME}.attach:attach" for point in points)
    found.say(there, f"entry point in {ENTRY_POINTS}: {', '.join(point.value for point in points) or 'none'}")
    with found.finding("upstream's load_plugins"):
        plugins.load_plugins()


def _say_of_models(found: Doctor) -> None:
    """Say of each row of the overlay whether upstream finds its configuration and classes."""
    from sglang.srt.configs.model_config import multimodal_model_archs
    from sglang.srt.managers import multimodal_processor
    from sglang.srt.models.registry import ModelRegistry
    from transformers import CONFIG_MAPPING

    from sglang_overlay_plugin.attach import UPSTREAMS_PROCESSORS
    from sglang_overlay_plugin.overlay_registry import MODELS

    for row in MODELS:
        if row.config is not None:
            with found.finding(f"configuration: {row.config}"):
                config = resolve_name(row.config)
                if CONFIG_MAPPING[config.model_type] is not config:
                    raise start.PluginError(f"model_type {config.model_type} is that of another class")
        if row.multimodal:
            found.say(row.architecture in multimodal_model_archs, f"multimodal architecture: {row.architecture}")
            with found.finding(f"processor of {row.architecture}"):
                multimodal_processor.import_processors(UPSTREAMS_PROCESSORS)
                if row.architecture not in {model.__name__ for model in multimodal_processor.PROCESSOR_MAPPING}:
                    raise start.PluginError("upstream finds none")
        for reference in filter(None, (row.model, row.draft)):
            with found.finding(f"model: {reference}"):
                model = resolve_name(reference)
                if (held := ModelRegistry.models.get(model.__name__)) is not model:
                    raise start.PluginError(f"upstream's registry holds {held} under this name")


if __name__ == "__main__":
    if sys.argv[1:] != ["doctor"]:
        sys.exit(f"usage: python -m {start.NAME} doctor")
    sys.exit(0 if doctor() else 1)
