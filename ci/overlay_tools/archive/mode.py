"""Whether a file is executable, which goes with its content."""

from __future__ import annotations

from pathlib import Path

ANY_X = 0o111  # of a mode: what makes a file executable for anyone, to installers


class Executable(bytes):
    """The content of an executable file; that of any other is plain `bytes`, and never equal to this."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        """Compare the mode as well as the content."""
        return isinstance(other, Executable) and bytes.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        """Compare as `==` does."""
        return not self == other

    __hash__ = bytes.__hash__


def with_mode(content: bytes, *, executable: bool) -> bytes:
    """Return the content of a file that is or is not executable."""
    return Executable(content) if executable else bytes(content)


def is_executable(content: bytes) -> bool:
    """Tell whether the file that has this content is executable."""
    return isinstance(content, Executable)


def read_with_mode(path: Path) -> bytes:
    """Return the content of a file on disk, an `Executable` if it is executable.

    Raises OSError if it cannot be read.
    """
    # Not whether this user may run it: on a disk that is mounted without that, no one may.
    return with_mode(path.read_bytes(), executable=bool(path.stat().st_mode & ANY_X))


def to_note(content: bytes | None) -> list[str | bool] | None:
    """Return a file's content and mode as JSON can hold them, None for one that is not there."""
    return None if content is None else [content.decode("latin-1"), is_executable(content)]


def from_note(noted: list[str | bool] | None) -> bytes | None:
    """Return what `to_note` has made a note of."""
    return None if noted is None else with_mode(str(noted[0]).encode("latin-1"), executable=bool(noted[1]))
