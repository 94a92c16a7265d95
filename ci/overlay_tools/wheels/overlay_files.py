"""overlay/: the files of its packages, read and compiled."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from overlay_tools.checkout import is_scratch, own_paths
from overlay_tools.errors import BuildError

_PACKAGES = ("sglang", "sgl_kernel", "sglang_overlay_plugin")
_DOCUMENTS = ("README.md", "CHANGELOG.md")  # beside the packages, for a reader of the repository; in no wheel
_LEFT_BY_MERGES = (".orig", ".rej")  # by git mergetool and patch


def read_package(overlay: Path, package: str) -> dict[str, bytes]:
    """Return the files of one of the overlay's packages by their path in a wheel.

    What is hidden, an editor's or Python's cache is left out.
    Raises BuildError if a file is a symbolic link or was left by a merge, or the overlay holds anything beside its
    packages, README.md and CHANGELOG.md.
    """
    if strays := sorted(path for path in overlay.iterdir() if not _belongs(path)):
        raise BuildError(
            *(f"{path} goes into no wheel." for path in strays),
            hint=f"overlay/ holds {', '.join(_PACKAGES)}, and beside them {' and '.join(_DOCUMENTS)}.",
        )
    paths = own_paths(overlay / package)
    if linked := [path for path in paths if path.is_symlink()]:
        raise BuildError(*(f"{path} is a symbolic link." for path in linked), hint="Put the file itself there.")
    if left := [path for path in paths if path.suffix in _LEFT_BY_MERGES]:
        raise BuildError(*(f"{path} was left by a merge or a patch." for path in left), hint="Settle and remove it.")
    return {path.relative_to(overlay).as_posix(): read_file(path) for path in paths if path.is_file()}


def read_file(path: Path) -> bytes:
    """Return the content of a file that goes into a wheel.

    Raises BuildError if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise BuildError(f"{path}: {error.strerror}.", hint="Restore the file, or make it readable.") from None


def compile_all(content: Mapping[str, bytes]) -> None:
    """Compile every Python file among `content`, by path.

    Raises BuildError with the line of each syntax error.
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
        raise BuildError(*faults, hint="Mend the file in overlay/, or the patch that changes it.")


def _belongs(path: Path) -> bool:
    return path.name in _PACKAGES or is_scratch(Path(path.name)) or (path.name in _DOCUMENTS and path.is_file())
