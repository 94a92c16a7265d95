"""Build the plugin wheel."""

from __future__ import annotations

import argparse

from overlay_tools.commands import Command
from overlay_tools.commands.shared import show_wheel
from overlay_tools.settings import Project
from overlay_tools.wheels.plugin import build_plugin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes: nothing."""


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Build the plugin wheel."""
    show_wheel(project, build_plugin(project))


COMMAND = Command(
    about="Builds a wheel of its own that brings the overlay's models to an SGLang as upstream published it, and writes"
    " it to dist/. It changes no file of upstream's, and one wheel serves every release that it is proven on."
    " `plugin-distribution` and `plugin-package` in pyproject.toml are its names.",
    examples={"": "write dist/NAME-REVISION-py3-none-any.whl, by default of sglang_overlay_plugin"},
    add_arguments=add_arguments,
    run=run,
)
