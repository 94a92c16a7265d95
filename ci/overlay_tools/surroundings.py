"""What of a user's environment, and of where a checkout lies, would change what the tool builds, tests and serves.

noxfile.py reads this before anything is installed, so it imports the standard library alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from overlay_tools.errors import OverlayError

# Each changes which modules an interpreter finds, or what their code does; an interpreter of ours has what its
# environment holds. `verify --env` asks one of a user's, to which they belong.
_PYTHONS = (
    *("PYTHONHOME", "PYTHONPATH", "PYTHONPLATLIBDIR", "PYTHONSAFEPATH", "PYTHONEXECUTABLE", "PYTHONCASEOK"),
    *("PYTHONOPTIMIZE", "PYTHONDEVMODE", "PYTHONWARNINGS", "PYTHONINSPECT"),
)
_ASIDE = "SGLANG_OVERLAY_USERS_"


def set_aside(environ: MutableMapping[str, str]) -> None:
    """Take Python's settings out of an environment, and keep them under names that only `users_python` reads."""
    for name in _PYTHONS:
        if name in environ:
            environ[_ASIDE + name] = environ.pop(name)


def users_python(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of Python that were set aside, and have not been set since."""
    kept = {name: environ[_ASIDE + name] for name in _PYTHONS if _ASIDE + name in environ}
    return {name: value for name, value in kept.items() if name not in environ}


def check_place(root: Path) -> None:
    """Raise OverlayError if a checkout lies where its programs and environments cannot be used."""
    if os.pathsep in str(root):
        raise OverlayError(
            f"{root} has a {os.pathsep!r} in its path, which PATH and git take for the end of a folder's name.",
            hint="Rename that folder, or move the checkout.",
        )
