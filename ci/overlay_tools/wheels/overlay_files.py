"""The build: a pinned base wheel, the series and the overlay make a drop-in wheel, written whole or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from overlay_tools.errors import BuildError

_PACKAGES = ("sglang", "sgl_kernel", "sglang_overlay_plugin")


def read_package(overlay: Path, package: str) -> dict[str, bytes]:
    """Return the overlay's files of one top-level package by their path in a wheel.

    Hidden files and Python's caches are left out.
    Raises BuildError if a file is a link, or the overlay has a package that goes into no wheel.
    """
    strange = [path for path in overlay.iterdir() if path.name not in _PACKAGES and path.name[0] != "."]
    if strange:
        raise BuildError(*(f"{path} goes into no wheel." for path in strange), hint="overlay/ mirrors site-packages.")
    content = {}
    for path in sorted((overlay / package).rglob("*")):
        parts = path.relative_to(overlay).parts
        if path.is_symlink():
            raise BuildError(f"{path} is a symbolic link.", hint="Put the file itself there.")
        if path.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
            content["/".join(parts)] = _read(path)
    return content


def compile_all(content: Mapping[str, bytes]) -> None:
    """Compile every Python file among `content`.

    Raises BuildError with each syntax error and its line.
    """
    faults = []
    for name, data in content.items():
        if name.endswith(".py"):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    compile(data, name, "exec", dont_inherit=True)
            except (SyntaxError, ValueError) as error:
                faults.append(f"{name}:{getattr(error, 'lineno', None) or 1}: {error}.")
    if faults:
        raise BuildError(*faults, hint="Mend the file in overlay/, or the patch that touches it.")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BuildError(f"{path}: {error.strerror}.") from None
