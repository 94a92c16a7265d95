"""Whether a file is executable, which goes with its content."""

from __future__ import annotations


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
