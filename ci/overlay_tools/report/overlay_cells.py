"""Cells of the status: how what a release takes of the overlay, and what it requires, differs from other releases."""

from __future__ import annotations

from overlay_tools.report.model import Cell, State
from overlay_tools.settings import Project
from overlay_tools.upstream.lockfile import Release
from overlay_tools.upstream.source_tree import SourceTree
from overlay_tools.wheels.dependencies import change_requirements
from overlay_tools.wheels.overlay_files import names_of

COLUMNS = ("overlay files", "requirements")


def files_cell(project: Project, release: Release) -> Cell:
    """Return which files of the overlay a release does not take."""
    names = names_of(project.overlay)
    left_out = [name for name in names if not project.takes(release.version, name)]
    notes = [f"{len(left_out)} left out"] * bool(left_out)
    return Cell(
        state=State.GREEN,
        word=f"{len(names) - len(left_out)} taken",
        notes=notes,
        names=[f"{name}: left out" for name in left_out],
    )


def requirements_cell(project: Project, release: Release, sources: SourceTree) -> Cell:
    """Return which requirements of a release are changed.

    Raises BuildError if they cannot be, WheelError if the release has none.
    """
    _, changes = change_requirements(project, release, sources.metadata)
    names = [f"{after or 'nothing'}, where upstream has {before or 'nothing'}" for before, after in changes]
    return Cell(state=State.GREEN, word=f"{len(changes)} changed" if changes else "as upstream", names=names)
