"""The commands, a module each: it reads its arguments, calls the package that does the work, and prints the outcome.

The command line imports a module when its command is asked for, so each may import what it needs at its top.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from overlay_tools.settings import Project

# How every command explains a VERSION that upstream.lock must hold.
LOCKED = "an SGLang release, as 0.5.23; `nox -l` and upstream.lock list those that are locked"
DEFAULT = "the one that pyproject.toml sets as `default`"

PASSED_ON = "passed_on"  # the argument that has what follows a `--`


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What a module of this package declares, as `COMMAND`.

    `about`: what it does, in a few sentences; `examples`: arguments, each with what they are for; `add_arguments`, to
    its parser; `run`: do it and return the exit status, None for success.
    """

    about: str
    examples: Mapping[str, str]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Project, argparse.Namespace], int | None]
