"""What patches/ is to hold, written to another folder first, to be checked as if it were in its place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from overlay_tools.downstream.transaction import write_files
from overlay_tools.errors import OverlayError
from overlay_tools.patches.lint import load_checked_series
from overlay_tools.patches.model import Hook
from overlay_tools.settings import Project, load_project


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedProject:
    """A checkout with other hooks, and these."""

    project: Project
    hooks: Sequence[Hook]


def stage(folder: Path, files: Mapping[str, str], patches: Path, versions: Sequence[str]) -> tuple[Hook, ...]:
    """Write what patches/ is to hold into another folder, read it back and check it against the releases.

    Raises PatchError as `load_checked_series` does, as if the files were in `patches`.
    """
    write_files(folder, {name: text.encode() for name, text in files.items()})
    with as_if_in(patches, str(folder)):
        return load_checked_series(folder, versions)


@contextmanager
def staged_project(
    project: Project,
    files: Mapping[str, str],
    versions: Sequence[str],
    others: Mapping[str, bytes | None] = MappingProxyType({}),
) -> Iterator[StagedProject]:
    """Give a checkout that differs from another one in patches/, which holds `files`, and in nothing else but `others`.

    Parameters: `others`, files of overlay/ and pyproject.toml, by path, None for those that are not there.
    Raises PatchError as `stage` does; errors speak of files of the other one.
    """
    with TemporaryDirectory() as folder, as_if_in(project.root, folder):
        root = Path(folder)
        for name in ("overlay", "ci", "NOTICE", "LICENSE", "pyproject.toml"):
            (root / name).symlink_to(project.root / name)
        if others:
            (root / "overlay").unlink()
            shutil.copytree(project.overlay, root / "overlay", symlinks=True)
            write_files(root, others)  # a file takes the place of a link to one
        hooks = stage(root / "patches", files, project.patches, versions)
        yield StagedProject(project=load_project(root), hooks=hooks)


@contextmanager
def as_if_in(real: Path, folder: str) -> Iterator[None]:
    """Let errors that speak of files of a temporary folder speak of those that they are to be, in `real`."""
    try:
        yield
    except OverlayError as error:
        problems = (problem.replace(folder, str(real)) for problem in error.problems)
        raise type(error)(*problems, hint=error.hint.replace(folder, str(real))) from None
