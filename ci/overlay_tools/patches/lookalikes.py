"""What a function may have become in another release, where nothing of its name is left in its file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from overlay_tools.patches.code_spans import find_spans, text_of_scope
from overlay_tools.patches.moving_hunk import MovingHunk

_TELLING = 8  # how many of a function's lines, the longest, tell whether a file may hold it
_ALIKE = 0.6  # how alike two functions or files must be for one to be taken for the other, renamed


def find_lookalikes(hunk: MovingHunk) -> Iterator[tuple[str, str]]:
    """Yield the files and functions that a hunk's own may have become, the likeliest first.

    For a hunk at the top level of its file they are whole files, "" in the place of a function.
    """
    own = text_of_scope(hunk.old, hunk.scope)
    candidates = _functions(hunk, own) if hunk.scope else _new_files(hunk)
    ranked = sorted(((_likeness(own, lines), name, scope) for name, scope, lines in candidates), reverse=True)
    for alike, name, scope in ranked:
        if alike >= _ALIKE and (name, scope) != (hunk.name, hunk.scope):
            yield name, scope


def _new_files(hunk: MovingHunk) -> Iterator[tuple[str, str, Sequence[str]]]:
    known = set(hunk.old_release.names)
    for name in hunk.release.names:
        if name not in known and (file := hunk.release.file(name)):
            yield name, "", text_of_scope(file.lines, "")


def _functions(hunk: MovingHunk, own: Sequence[str]) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yield the functions of the same last name; of the hunk's own file also those that are new there, renamed."""
    known = {span.name for span in find_spans("\n".join(hunk.old))}
    for name in _files_that_may_hold(hunk, own):
        file = hunk.release.file(name)
        lines = file.lines if file else []
        for span in find_spans("\n".join(lines)):
            renamed = name == hunk.name and span.name not in known
            if renamed or _last_name(span.name) == _last_name(hunk.scope):
                yield name, span.name, lines[span.first : span.end]


def _files_that_may_hold(hunk: MovingHunk, own: Sequence[str]) -> Iterator[str]:
    """Yield the hunk's own file, and those that hold the function's name and many of its longest lines."""
    # To read is cheap, to parse is not.
    longest = sorted({line.strip() for line in own}, key=len)[-_TELLING:]
    words = [word.encode("utf-8", "surrogateescape") for word in (f" {_last_name(hunk.scope)}", *longest)]
    for name in hunk.release.names:
        content = hunk.release.read(name) or b""
        if name == hunk.name or sum(word in content for word in words) > len(words) * _ALIKE / 2:
            yield name


def _last_name(scope: str) -> str:
    return scope.rpartition(".")[2].partition("#")[0]


def _likeness(old: Sequence[str], new: Sequence[str]) -> float:
    """Return which part of the lines two texts have in common, from 0 to 1."""
    a, b = ({line.strip() for line in lines if line.strip()} for lines in (old, new))
    return 2 * len(a & b) / max(1, len(a) + len(b))
