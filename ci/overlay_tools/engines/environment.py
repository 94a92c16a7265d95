"""Environments that the engine runs in: what a release pins, with the built wheels in place of upstream's."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from overlay_tools import console
from overlay_tools.engines import engine_config
from overlay_tools.engines.venv import open_environment
from overlay_tools.patches.model import Hook
from overlay_tools.patches.series import load_series
from overlay_tools.settings import Project, cache_dir
from overlay_tools.upstream.download import fetch
from overlay_tools.upstream.lockfile import THIS_PYTHON, Release, get_release, load_lock
from overlay_tools.wheels.builder import BuiltWheel, build_kernel, build_sglang
from overlay_tools.wheels.dependencies import with_own_kernel
from overlay_tools.wheels.overlay_files import check_ranges
from overlay_tools.wheels.plugin import build_plugin

# Bounds that a release should have set: newer versions of what it leaves open do not work with what it pins.
BOUNDS = {">=0.5.11,<0.5.13": ("kernels<0.13",)}
# What the tests and the parts of the tool that they call take, and `accelerate`: transformers reads GGUF files with it.
_TEST_EXTRAS = (
    "accelerate",
    "filelock",
    "pip",
    "platformdirs",
    "psutil",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "rich",
    "tomlkit",
    "uv",
)
_GPU_EXTRAS = ("flash-linear-attention>=0.4",)  # what transformers' Qwen3-Next takes on a GPU


def build_release(
    project: Project, release: Release, hooks: Sequence[Hook], python: str, target: str
) -> list[BuiltWheel]:
    """Fetch the base of one release and build its two wheels."""
    check_ranges(project, load_lock(project.lock))
    wheel = release.select(python, target)
    with console.step(f"Fetch {wheel.name}"):
        base = fetch(release, wheel, cache_dir())
    with console.step(f"Build sglang {project.overlay_version(release.version)}"):
        sglang = build_sglang(project, release, wheel, base, hooks)
    kernel = with_own_kernel(project, release)
    with console.step(f"Build {kernel.kernel.name} {project.kernel_version(kernel.kernel_version)}"):
        return [sglang, build_kernel(project, release)]


@contextmanager
def engine_environment(
    project: Project, version: str, python: str | None, folder: Path, *, gpu: bool, plugin: bool = False
) -> Iterator[Path]:
    """Build a release's wheels and make the environment that its engine runs in.

    Parameters: `python`, as "3.12", this one's if None; `folder`, where the environment is or is to be; `gpu`, whether
    it has upstream's kernels for a GPU, in place of ours for a CPU; `plugin`, whether it holds upstream's own sglang
    and the plugin in place of the drop-in wheel.
    Yields the environment's interpreter; until the block ends no other command changes the environment.
    Raises OverlayError of the kind that fits.
    """
    release = get_release(load_lock(project.lock), version, project.lock)
    hooks = load_series(project.patches)
    machine = platform.machine()
    sglang, kernel = (built.path for built in build_release(project, release, hooks, python or THIS_PYTHON, machine))
    wheels = [sglang] if gpu else [sglang, kernel]
    if plugin:
        with console.step("Build the plugin"):
            added = build_plugin(project).path
        wheels = [fetch(release, release.select(python or THIS_PYTHON, machine), cache_dir()), added, *wheels[1:]]
    left_out = () if gpu else engine_config.of_release(engine_config.LEFT_OUT, version)
    extras = (*_TEST_EXTRAS, *(_GPU_EXTRAS if gpu else ()), *engine_config.of_release(BOUNDS, version))
    with ExitStack() as stack:
        with console.step(f"Install them and what they pin into {folder.relative_to(project.root)}"):
            interpreter = stack.enter_context(open_environment(folder, python, wheels, extras, left_out))
        yield interpreter
