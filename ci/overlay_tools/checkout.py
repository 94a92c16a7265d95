"""A checkout: the files in it that are the project's own, its commit, and one command at a time that writes to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path, PurePath

from filelock import FileLock, Timeout

from overlay_tools import console
from overlay_tools.errors import OverlayError, ToolError
from overlay_tools.subprocesses import git

_PATIENCE = 300  # seconds; a port takes a minute or two, and longer only where it asks something or downloads

_TO_LF = (
    r"`git ls-files --eol | sed -n 's/^i.lf *w.crlf.*\t//p' | xargs -d '\n' sed -i 's/\r$//'` makes it LF again, and"
    " keeps what you have changed."
)
UNDO = ".nox/undo.json"  # what the files of a checkout were that a command is writing

# What editors, Python and file managers leave in overlay/ and patches/; no one means it to be there.
_SCRATCH = (".*", "*~", "#*#", "__pycache__")


def own_paths(folder: Path) -> list[Path]:
    """Return what lies in a folder of the checkout, at any depth, sorted, but for what is hidden or an editor's.

    Of a file, return that.
    """
    found = [folder] if folder.is_file() else sorted(folder.rglob("*"))
    return [path for path in found if not is_scratch(path.relative_to(folder))]


def is_scratch(path: PurePath) -> bool:
    """Tell whether a path in overlay/ or patches/ is hidden, or an editor's, or below such a folder."""
    return any(fnmatchcase(part, pattern) for part in path.parts for pattern in _SCRATCH)


def checked_out(root: Path, *left_out: str) -> tuple[str, bool]:
    """Return the commit that is checked out, and whether anything differs from it; "" where git knows of none.

    Parameters: `left_out`, files whose changes do not count.
    Raises ToolError if git is absent.
    """
    head = git(["rev-parse", "--verify", "HEAD^{commit}"], cwd=root)
    if head.returncode != 0:
        return "", False
    others = (f":!{name}" for name in left_out)
    changes = git(["--no-optional-locks", "status", "--porcelain", "--", ".", *others], cwd=root)
    return head.stdout.strip(), changes.returncode != 0 or bool(changes.stdout.strip())


def check_line_ends(root: Path) -> None:
    """Check that git has not changed the line ends of files that go into wheels: they must be the same everywhere.

    A file that is committed with CRLF, and a patch that has both kinds, is meant to be so. Where git has no repository,
    or does not open that of another user, there is nothing to compare with.
    Raises OverlayError with the files.
    """
    if not (root / ".git").exists():
        return
    try:
        listed = git(["ls-files", "-z", "--eol", "--", "overlay", "patches", "LICENSE", "NOTICE"], cwd=root).stdout
    except ToolError:
        return
    rows = (row.partition("\t") for row in listed.split("\0") if row)
    if converted := [name for state, _, name in rows if state.split()[:2] == ["i/lf", "w/crlf"]]:
        more = f", and {len(converted) - 1} more files have them," if len(converted) > 1 else ""
        raise OverlayError(
            f"{root / converted[0]} has CRLF line ends here{more} where git has LF: `core.autocrlf` or `core.eol` of"
            " your git settings does that.",
            hint=_TO_LF,
        )


def check_whole(root: Path) -> None:
    """Check that no command was killed while it wrote to a checkout, or writes to it now.

    Raises OverlayError if one was, or does.
    """
    if (root / UNDO).exists():
        raise OverlayError(
            f"{root} is half written: a command was killed at it, or is at it now.",
            hint="Run it again: `edit`, `export`, `import`, `port` and `lock` first put back what was there.",
        )


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


@contextmanager
def own_folder(parent: Path) -> Iterator[Path]:
    """Yield a folder that no other command uses until the block ends: `parent`/1, or the first one that is free.

    What the last command has left in it stays.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        lock = FileLock(parent / f"{number}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        try:
            (parent / str(number)).mkdir(exist_ok=True)
            yield parent / str(number)
            return
        finally:
            lock.release()
