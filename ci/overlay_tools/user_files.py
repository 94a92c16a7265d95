"""Files of a person's, read as text and written: each error names the file, and the line if there is one."""

from __future__ import annotations

import errno
import glob
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from overlay_tools.errors import OverlayError

_HINTS = {
    errno.ENOSPC: "Make room on its disk, then run this again.",
    errno.EFBIG: "The file system, or a limit of this shell (`ulimit -f`), takes none of that size.",
    errno.EDQUOT: "Make room on its disk, then run this again.",
    errno.EROFS: "Run this where it can write.",
    errno.EACCES: "Give yourself access to it, or run this as its owner.",
    errno.EPERM: "Give yourself access to it, or run this as its owner.",
    errno.EEXIST: "A folder belongs there: remove that file, or give it another name.",
    errno.ENOTDIR: "One of its folders is a file: remove that file, or give it another name.",
    errno.EISDIR: "A file belongs there: remove that folder, or give it another name.",
    errno.ELOOP: "It is a link to itself: restore the file.",
}


def read_data(path: Path, kind: type[OverlayError] = OverlayError, hint: str = "") -> bytes:
    """Return the content of a file.

    Raises an error of `kind` if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise kind(f"{path}: {error.strerror}.", hint=hint or hint_of(error)) from None


def read_text(path: Path, kind: type[OverlayError] = OverlayError, hint: str = "") -> str:
    """Return the text of a file, its line ends made alike.

    Raises an error of `kind` if it cannot be read, or is not UTF-8.
    """
    return decode(read_data(path, kind, hint), path, kind).replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str | bytes) -> Any:  # noqa: ANN401  # whatever it holds
    """Return what JSON says.

    Raises ValueError if it is none, or an object has a key twice, of which Python would take the last without a word;
    RecursionError if it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"`{key}` is there twice")
        found[key] = value
    return found


def decode(data: bytes, path: Path | str, kind: type[OverlayError] = OverlayError) -> str:
    """Return the text of a file that has been read.

    Raises an error of `kind`, with the line, if it is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise kind(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8.",
            hint="Save the file as UTF-8; `iconv -f latin1 -t utf-8` converts what is in Latin-1.",
        ) from None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError say which file it is about: the system does not where a write fails, as on a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_whole(path: Path, data: bytes, *, executable: bool = False) -> None:
    """Write a file whole or not at all.

    Raises OSError, which names it.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # another command may write the same file
    try:
        with naming(path):
            part.write_bytes(data)
            if executable:
                part.chmod(0o755)
            part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@lru_cache(maxsize=8)
def file_in_memory(name: str, text: str) -> str:
    """Return the path of a file for programs that this process calls; it ends with this process."""
    handle = os.memfd_create(name)
    os.write(handle, text.encode("utf-8", "surrogateescape"))
    return f"/proc/{os.getpid()}/fd/{handle}"


def remove_parts(path: Path) -> None:
    """Remove what a command that was killed has left of a file that it wrote."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        part.unlink(missing_ok=True)


def describe(error: OSError | UnicodeError) -> OverlayError:
    """Return what to tell a person of an error that nothing else has dealt with."""
    if isinstance(error, UnicodeError):
        return OverlayError(f"A text cannot be read or written: {error}.", hint=hint_of(error))
    what = (error.strerror or str(error)).rstrip(".")
    return OverlayError(f"{error.filename}: {what}." if error.filename else f"{what}.", hint=hint_of(error))


def hint_of(error: OSError | UnicodeError) -> str:
    """Return the next step after an error of the system."""
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
        return "Set TMPDIR to a folder that you can write to."
    known = _HINTS.get(error.errno or 0) if isinstance(error, OSError) else None
    return known or "Run this again with --verbose to see where that was."
