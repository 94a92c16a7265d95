"""Exact application: a hunk fits where its lines stand, unchanged and once, or it does not apply."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from unidiff import Hunk, PatchedFile

from overlay_tools.archive.mode import is_executable, with_mode
from overlay_tools.errors import PatchError
from overlay_tools.patches.model import (
    Patch,
    begins_file,
    blob_id,
    blob_of,
    deletes,
    ends_file,
    join_lines,
    locate,
    locate_file,
    modes_of,
    sides,
    source_of,
    split_lines,
    target_of,
)

_UPSTREAM = "It is upstream: end `Applies` before this release."


def apply_series(patches: Sequence[Patch], read: Callable[[str], bytes | None], base: str) -> dict[str, bytes | None]:
    """Apply patches in order, all of them or none.

    Parameters: `read` gives the content of a file of the base, or None if it has no such file; `base` is what an error
    calls it.
    Returns the new content of every touched file, None for one that is deleted or renamed.
    Raises PatchError if a patch does not apply exactly, or changes nothing.
    """
    touched: dict[str, bytes | None] = {}

    def now(name: str) -> bytes | None:
        return touched[name] if name in touched else read(name)

    for patch in patches:
        for file in patch.files:
            touched |= _apply_to_file(patch, file, now, base)
    return touched


def apply_if_fits(patch: Patch, files: Mapping[str, bytes | None]) -> dict[str, bytes | None] | None:
    """Return what a patch makes of files, given by path; None if it does not apply to them."""
    try:
        return apply_series([patch], files.get, "them")
    except PatchError:
        return None


def find_hunk(lines: Sequence[str], hunk: Hunk) -> list[int]:
    """Return where a hunk fits among a file's lines, each place by the first of its lines, counted from 0.

    Nothing else decides whether a hunk applies: it does where this is one place. A hunk that was made at an end of a
    file has fewer lines of context there, for the end is one: it fits nowhere else.
    """
    return _find_side(lines, hunk, sides(hunk)[0])


def find_block(lines: Sequence[str], block: Sequence[str]) -> list[int]:
    """Return where a block of lines stands among others, each place by its first line, counted from 0."""
    size, block = len(block), list(block)
    return [n for n, line in enumerate(lines) if line == block[0] and list(lines[n : n + size]) == block]


def _find_side(lines: Sequence[str], hunk: Hunk, side: Sequence[str]) -> list[int]:
    places = find_block(lines, side)
    if begins_file(hunk):
        places = [place for place in places if place == 0]
    # What comes after the last line end is not a line: only a hunk made there has it, and that has to end with it.
    return [place for place in places if (place + len(side) == len(lines)) == ends_file(hunk)]


def _apply_to_file(
    patch: Patch, file: PatchedFile, read: Callable[[str], bytes | None], base: str
) -> dict[str, bytes | None]:
    """Return what a patch makes of one file, by path: with a rename there are two."""
    name, target, at = source_of(file), target_of(file), locate_file(patch, file)
    content = read(name)
    if content is None:
        if deletes(file):
            raise PatchError(f"{at}: {base} has no {name} to delete.", hint=_UPSTREAM)
        if target != name and read(target) is not None:
            raise PatchError(f"{at}: {base} has no {name}, and it has {target}.", hint=_UPSTREAM)
        raise PatchError(f"{patch.path}: {base} has no {name}.", hint="Upstream moved or removed it: move the hook.")
    if target != name and read(target) is not None:
        raise PatchError(
            f"{at}: {base} has a file {target} already.", hint="A variant for this release gives the file another name."
        )
    if blob_of(file) not in ("", blob_id(content)):
        raise PatchError(
            f"{at}: {name} of {base} has changed since the hook was made, which {_verb(file)} it as it was.",
            hint="See what has changed; if the hook is right all the same, add a variant for this release.",
        )
    if deletes(file):
        return {name: None}
    made = _apply_mode(at, file, content, f"{name} of {base}")
    if len(file):
        made = with_mode(_apply_hunks(patch, file, content, base), executable=is_executable(made))
    return {name: None, target: made}  # without a rename both are one


def _verb(file: PatchedFile) -> str:
    return "deletes" if deletes(file) else "renames"


def _apply_mode(at: str, file: PatchedFile, content: bytes, where: str) -> bytes:
    """Return a file's content with the mode that a diff gives it."""
    before, after = modes_of(file) or (is_executable(content),) * 2
    if is_executable(content) != before:
        raise PatchError(f"{at}: {where} is {'' if after else 'not '}executable already.", hint=_UPSTREAM)
    return with_mode(content, executable=after)


def _apply_hunks(patch: Patch, file: PatchedFile, content: bytes, base: str) -> bytes:
    """Return a file with the hunks of a patch, each placed where the ones before it have left its lines."""
    where = f"{source_of(file)} of {base}"
    lines = split_lines(content)
    faults, upstream = [], []
    for hunk in file:
        before, after = sides(hunk)
        places = find_hunk(lines, hunk)
        if len(places) == 1:
            (place,) = places
            lines[place : place + len(before)] = after
        elif places:
            at = ", ".join(str(place + 1) for place in places)
            raise PatchError(
                f"{locate(patch, hunk)}: the hunk fits {where} at lines {at}.",
                hint="Give it more context, so that it fits once.",
            )
        elif _find_side(lines, hunk, after):
            upstream.append(f"{locate(patch, hunk)}: {where} already holds what the hunk makes of it.")
        else:
            faults.append(f"{locate(patch, hunk)}: {_why_not(lines, hunk, where)}.")
    if upstream and not faults:
        raise PatchError(*upstream, hint=_UPSTREAM)
    if faults:
        raise PatchError(*faults, *upstream, hint="Hunks apply exactly or not at all: add a variant for this release.")
    if (made := join_lines(lines)) == content:
        raise PatchError(f"{patch.path}: it changes nothing in {where}.", hint="Take out what it does not change.")
    return made


def _why_not(lines: Sequence[str], hunk: Hunk, where: str) -> str:
    """Say why a hunk fits nowhere."""
    before = sides(hunk)[0]
    lines = lines if ends_file(hunk) else lines[:-1]
    if find_block(lines, before[:-1] if ends_file(hunk) and before[1:] else before):
        end = "end" if ends_file(hunk) else "beginning"
        return f"the lines that the hunk expects at the {end} of the file stand elsewhere in {where}"
    if find_block(_squeeze(lines), _squeeze(before)):
        return f"the hunk fits {where} only if white space is ignored"
    return f"the lines that the hunk expects are not in {where}"


def _squeeze(lines: Sequence[str]) -> list[str]:
    return ["".join(line.split()) for line in lines]
