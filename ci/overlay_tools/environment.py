"""Environments that the engine runs in: what a release pins, with the built wheels in place of upstream's."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from overlay_tools.build import Built
from overlay_tools.index import uv
from overlay_tools.process import run

# Bounds that a release should have set: what it leaves open has moved on since and no longer works with what it pins.
BOUNDS: dict[str, tuple[str, ...]] = dict.fromkeys(("0.5.11", "0.5.12.post1"), ("kernels<0.13",))
_STAMP = "sglang-overlay-wheels"


def has_cuda() -> bool:
    """Tell whether this machine has a CUDA GPU that its driver answers for."""
    driver = shutil.which("nvidia-smi")
    return driver is not None and "GPU " in run([driver, "-L"], check=False).stdout


def ensure_environment(
    folder: Path, python: str, wheels: Sequence[Built], extras: Sequence[str], left_out: Sequence[str] = ()
) -> Path:
    """Make an environment that holds `wheels`, what they pin and `extras`, or bring an older one up to date.

    Parameters: `python`, the interpreter to make it from, a path or a version as "3.12"; `left_out`, distributions that
    are not installed although something requires them.
    Returns the environment's interpreter.
    Raises ToolError, with what uv said, if something cannot be installed.
    """
    interpreter = folder / "bin" / "python"
    stamp = folder / _STAMP
    wanted = "\n".join([*(built.sha256 for built in wheels), *extras, *left_out, python])
    if stamp.exists() and interpreter.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return interpreter
    if not stamp.exists() or stamp.read_text(encoding="utf-8").splitlines()[-1] != python:
        # Without its stamp, an environment is one whose making was cut short.
        shutil.rmtree(folder, ignore_errors=True)
        run([*uv(), "venv", "--no-project", "--python", python, folder])
    stamp.unlink(missing_ok=True)
    command: list[str | Path] = [*uv(), "pip", "install", "--quiet", "--prerelease=allow", "--python", interpreter]
    overrides = folder / "overrides.txt"
    overrides.write_text("".join(f"{name} ; python_version < '3'\n" for name in left_out), encoding="utf-8")
    run([*command, "--overrides", overrides, *(built.path for built in wheels), *extras])
    stamp.write_text(wanted, encoding="utf-8")
    return interpreter
