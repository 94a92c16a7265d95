"""What was found out about a release's sources, kept while all that it was found out from stays as it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import overlay_tools
from overlay_tools.proving.inputs import FileSet
from overlay_tools.report.model import Cell, State
from overlay_tools.settings import Project
from overlay_tools.upstream.lockfile import THIS_PYTHON, Release, dump_lock
from overlay_tools.user_files import write_whole

_READ = FileSet(trees=("overlay", "patches", "ci/contract.toml", "pyproject.toml"))
_TOOL = FileSet(trees=("overlay_tools",))

Cells = Sequence[Sequence[Cell]]


class KeptChecks:
    """The cells of each release in files of a checkout's `.nox`, which may be removed at any time."""

    def __init__(self, project: Project) -> None:
        self._folder = project.root / ".nox" / "checked"
        tool = _TOOL.digest(Path(overlay_tools.__file__).parents[1])
        self._read = f"{_READ.digest(project.root)} {tool} {THIS_PYTHON}"

    def find(self, release: Release) -> Cells | None:
        """Return the cells of a release; nothing if they were of anything else than the checkout and the lock have."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self._path(release).read_bytes())
            if kept["of"] == self._of(release):
                return [[_cell(fields) for fields in cells] for cells in kept["cells"]]
        return None

    def keep(self, release: Release, checked: Cells) -> None:
        """Keep the cells of a release, where the checkout can be written to."""
        cells = [[asdict(cell) | {"state": cell.state.name} for cell in group] for group in checked]
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._path(release), json.dumps({"of": self._of(release), "cells": cells}).encode())

    def _path(self, release: Release) -> Path:
        return self._folder / f"{release.version}.json"

    def _of(self, release: Release) -> str:
        return hashlib.sha256(f"{self._read} {dump_lock({release.version: release})}".encode()).hexdigest()


def _cell(fields: dict[str, Any]) -> Cell:
    return Cell(**fields | {"state": State[fields["state"]]})
