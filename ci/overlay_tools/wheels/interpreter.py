"""Where an interpreter looks for packages, and where it would take each of ours from."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from overlay_tools.errors import ToolError, VerifyError
from overlay_tools.subprocesses import run
from overlay_tools.surroundings import users_python

_NAME = "Name the interpreter of an environment, as .venv/bin/python."
# It is run without -I, which would hide the user's site-packages and PYTHONPATH; what it imports for itself does not
# come from the working folder. Nothing of ours is imported.
_ASK = """
import sys
path = list(sys.path)
sys.path[:] = [entry for entry in path if entry]
import importlib.util, json, os, site
sys.path[:] = path
def location(name):
    spec = importlib.util.find_spec(name)
    return spec and (list(spec.submodule_search_locations or [])[:1] or [spec.origin])[0]
print(json.dumps({
    "path": [entry or os.getcwd() for entry in path],
    "working": os.getcwd() if "" in path else "",
    "user": site.getusersitepackages(),
    "variable": os.environ.get("PYTHONPATH", "").split(os.pathsep),
    "packages": {name: location(name) for name in sys.argv[1:]},
}))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchPath:
    """What an interpreter says of imports, in the working folder and with the user's environment variables.

    `folders`: those that it looks in, in order; `packages`: where it takes each package from, as far as there is one;
    `kinds`: what some of the folders are.
    """

    folders: Sequence[Path]
    packages: Mapping[str, Path]
    kinds: Mapping[Path, str]

    def describe(self, package: str) -> str:
        """Say where a package is taken from, and why Python looks there."""
        location = self.packages[package]
        other = "" if location.parent in self.folders else "through an editable install or an import hook"
        kind = self.kinds.get(location.parent, other)
        return f"{location} ({kind})" if kind else str(location)


def ask(python: str, packages: Collection[str]) -> SearchPath:
    """Ask an interpreter where it looks for packages, and where it finds some.

    Raises VerifyError if it is none.
    """
    try:
        done = run([python, "-c", _ASK, *sorted(packages)], env=users_python(os.environ), check=False)
    except (ToolError, OSError):
        raise VerifyError(f"{python} is not a Python interpreter: it cannot be run.", hint=_NAME) from None
    try:
        said = json.loads(done.stdout.splitlines()[-1])  # a startup file of the environment may have printed before it
        kinds = {Path(entry): "on PYTHONPATH" for entry in said["variable"] if entry}
        kinds[Path(said["user"])] = "the user's site-packages"
        if said["working"]:
            kinds[Path(said["working"])] = "the working folder"
        return SearchPath(
            folders=list(dict.fromkeys(Path(entry).resolve() for entry in said["path"] if Path(entry).is_dir())),
            packages={name: Path(place) for name, place in said["packages"].items() if place},
            kinds=kinds,
        )
    except (ValueError, IndexError, KeyError, TypeError):
        why = done.stderr.strip() or "it did not answer"
        raise VerifyError(f"{python} is not a Python interpreter: {why}", hint=_NAME) from None
