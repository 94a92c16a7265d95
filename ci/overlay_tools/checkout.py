"""A checkout: the files in it that are the project's own, and one command at a time that writes to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from filelock import FileLock, Timeout

from overlay_tools import console
from overlay_tools.errors import OverlayError

_PATIENCE = 300  # seconds; a port takes a minute or two, and longer only where it asks something or downloads

# What editors, Python and file managers leave in overlay/ and patches/; no one means it to be there.
_SCRATCH = (".*", "*~", "#*#", "__pycache__")


def own_paths(folder: Path) -> list[Path]:
    """Return what lies in a folder of the checkout, at any depth, sorted, but for what is hidden or an editor's."""
    return [path for path in sorted(folder.rglob("*")) if not is_scratch(path.relative_to(folder))]


def is_scratch(path: PurePath) -> bool:
    """Tell whether a path in overlay/ or patches/ is hidden, or an editor's, or below such a folder."""
    return any(fnmatchcase(part, pattern) for part in path.parts for pattern in _SCRATCH)


@contextmanager
def only_writer(root: Path) -> Iterator[None]:
    """Wait until no other command writes to upstream.lock, patches/ or overlay/, and keep others waiting from then on.

    What is to be changed must be read inside: another command may have changed it until then. A killed process holds
    nothing.
    Raises OverlayError if another command does not finish.
    """
    path = root / ".nox" / "checkout.lock"
    path.parent.mkdir(exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        console.line("Another command writes to this checkout: waiting for it to end.")
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            raise OverlayError(
                f"Another command has held {path} for {_PATIENCE} seconds.",
                hint="Wait for it, answer what it asks, or end it.",
            ) from None
    try:
        yield
    finally:
        lock.release()
