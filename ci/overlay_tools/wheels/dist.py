"""The folder dist/: one build writes to it at a time, and each file appears there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from overlay_tools.archive.reader import WheelReader
from overlay_tools.archive.writer import WheelWriter
from overlay_tools.errors import BuildError
from overlay_tools.settings import Project
from overlay_tools.wheels.plan import PlannedMember
from overlay_tools.wheels.provenance import statement_of

_PATIENCE = 60  # seconds that a build waits for another one, which takes less than one


def write_wheel(
    project: Project,
    name: str,
    members: Sequence[PlannedMember],
    describe: Callable[[str], bytes],
    base: WheelReader | None = None,
) -> tuple[Path, int, str]:
    """Write a wheel and the statement about it under temporary names, then let them take their places in dist/.

    Parameters: `name`, its file name; `describe`, which returns the statement about a wheel that has this sha256;
    `base`, the wheel that members are copied from.
    Returns its path, its size in bytes and its sha256.
    Raises BuildError if dist/ cannot be written to, or another build does not finish.
    """
    path = project.dist / name
    with only_writer_of_dist(project, path), _partial_file(path) as (stream, part):
        writer = WheelWriter(stream)
        _write_members(writer, members, base)
        replace_file(statement_of(path), describe(writer.sha256))
        _take_place(stream, part, path)
    return path, writer.size, writer.sha256


@contextmanager
def only_writer_of_dist(project: Project, path: Path) -> Iterator[None]:
    """Wait until no other command writes to dist/, and keep others waiting from then on.

    Parameters: `path`, what is to be written, for errors.
    Raises BuildError if dist/ cannot be written to, or another command does not finish.
    """
    try:
        with _only_build(project):
            yield
    except Timeout as error:
        raise BuildError(
            f"Another build has held {error.lock_file} for {_PATIENCE} seconds.",
            hint="Wait for it, or end it. If no build is running, delete the file.",
        ) from None
    except (FileExistsError, NotADirectoryError) as error:
        raise BuildError(
            f"{path.name} cannot be written: {error.filename} is not a folder.",
            hint="Remove that file, or give it another name.",
        ) from None
    except OSError as error:
        where = error.filename or path
        raise BuildError(f"{where}: {error.strerror}.", hint="A build must be able to write there.") from None


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that takes its place whole, or not at all."""
    with _partial_file(path) as (stream, part):
        stream.write(content)
        _take_place(stream, part, path)


def _take_place(stream: BinaryIO, part: Path, path: Path) -> None:
    stream.flush()
    os.fsync(stream.fileno())
    part.chmod(0o644)
    part.replace(path)


def _write_members(writer: WheelWriter, members: Sequence[PlannedMember], base: WheelReader | None) -> None:
    """Write what is copied before what is new, and all of .dist-info last, as the wheel format advises."""
    for last in (False, True):
        group = [member for member in members if member.name.partition("/")[0].endswith(".dist-info") is last]
        if base is not None:
            writer.copy(base, {member.source: member.name for member in group if isinstance(member.source, str)})
        for member in group:
            if isinstance(member.source, bytes):
                writer.add(member.name, member.source)
    writer.finish()


@contextmanager
def _only_build(project: Project) -> Iterator[None]:
    """Wait until no other build writes to dist/, and remove what a killed one has left there."""
    project.dist.mkdir(parents=True, exist_ok=True)
    lock = project.root / ".nox" / "dist.lock"  # it may stay behind, and in dist/ only wheels should
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock, timeout=_PATIENCE):
        for left in project.dist.glob(".*.whl.*.part"):
            left.unlink()
        yield


@contextmanager
def _partial_file(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream, Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
