"""Environments that the engine runs in: what a release pins, with the built wheels in place of upstream's."""

from __future__ import annotations

import hashlib
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from overlay_tools import console
from overlay_tools.engines import engine_config
from overlay_tools.patches.model import Hook
from overlay_tools.patches.series import load_series
from overlay_tools.settings import Project, cache_dir
from overlay_tools.subprocesses import run
from overlay_tools.upstream.download import fetch
from overlay_tools.upstream.installers import uv
from overlay_tools.upstream.lockfile import Release, get_release, load_lock
from overlay_tools.upstream.source_tree import THIS_PYTHON
from overlay_tools.wheels.builder import BuiltWheel, build_kernel, build_sglang
from overlay_tools.wheels.dependencies import with_own_kernel
from overlay_tools.wheels.overlay_files import check_ranges
from overlay_tools.wheels.plugin import build_plugin

# Bounds that a release should have set: newer versions of what it leaves open do not work with what it pins.
BOUNDS = {">=0.5.11,<0.5.13": ("kernels<0.13",)}
_TEST_EXTRAS = ("pip", "psutil", "pytest>=8", "rich", "uv")
_GPU_EXTRAS = ("flash-linear-attention>=0.4",)  # what transformers' Qwen3-Next takes on a GPU
_STAMP = "sglang-overlay-wheels"


def has_cuda() -> bool:
    """Tell whether this machine has a CUDA GPU that its driver answers for."""
    driver = shutil.which("nvidia-smi")
    return driver is not None and "GPU " in run([driver, "-L"], check=False).stdout


def ensure_environment(
    folder: Path, python: str, wheels: Sequence[Path], extras: Sequence[str], left_out: Sequence[str] = ()
) -> Path:
    """Make an environment that holds `wheels`, what they pin and `extras`, or bring an older one up to date.

    Parameters: `python`, the interpreter to make it from, a path or a version as "3.12"; `left_out`, distributions that
    are not installed although something requires them.
    Returns the environment's interpreter.
    Raises ToolError, with what uv said, if something cannot be installed.
    """
    interpreter = folder / "bin" / "python"
    stamp = folder / _STAMP
    wanted = "\n".join(
        [*(hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels), *extras, *left_out, python]
    )
    if stamp.exists() and interpreter.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return interpreter
    if not stamp.exists() or stamp.read_text(encoding="utf-8").splitlines()[-1] != python:
        # An environment without its stamp is one whose making was cut short.
        shutil.rmtree(folder, ignore_errors=True)
        run([*uv(), "venv", "--no-project", "--python", python, folder])
    stamp.unlink(missing_ok=True)
    command: list[str | Path] = [*uv(), "pip", "install", "--quiet", "--prerelease=allow", "--python", interpreter]
    overrides = folder / "overrides.txt"
    overrides.write_text("".join(f"{name} ; python_version < '3'\n" for name in left_out), encoding="utf-8")
    run([*command, "--overrides", overrides, *wheels, *extras])
    stamp.write_text(wanted, encoding="utf-8")
    return interpreter


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
    with console.step(f"Build {kernel.kernel.name} {kernel.kernel_version}+cpu.{project.revision}"):
        return [sglang, build_kernel(project, release)]


def engine_environment(
    project: Project, version: str, python: str | None, folder: Path, plugin: bool = False
) -> tuple[Path, bool]:
    """Build a release's wheels and make the environment that its engine runs in.

    Parameters: `python`, as "3.12", this one's if None; `folder`, where the environment is or is to be; `plugin`,
    whether it holds upstream's own sglang and the plugin in place of the drop-in wheel.
    Returns the environment's interpreter, and whether it has upstream's kernels for a GPU.
    Raises OverlayError of the kind that fits.
    """
    release = get_release(load_lock(project.lock), version, project.lock)
    gpu = has_cuda()
    hooks = load_series(project.patches)
    machine = platform.machine()
    sglang, kernel = (built.path for built in build_release(project, release, hooks, python or THIS_PYTHON, machine))
    wheels = [sglang] if gpu else [sglang, kernel]
    if plugin:
        with console.step("Build the plugin"):
            added = build_plugin(project).path
        wheels = [fetch(release, release.select(python or THIS_PYTHON, machine), cache_dir()), added, *wheels[1:]]
    left_out = () if gpu else engine_config.of_release(engine_config.LEFT_OUT, version)
    with console.step(f"Install them and what they pin into {folder.relative_to(project.root)}"):
        extras = (*_TEST_EXTRAS, *(_GPU_EXTRAS if gpu else ()), *engine_config.of_release(BOUNDS, version))
        interpreter = ensure_environment(folder, python or sys.executable, wheels, extras, left_out)
    return interpreter, gpu
