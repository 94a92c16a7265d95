"""Files of the checkout changed together: all of them, or after a failure or a kill none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from overlay_tools.archive.mode import from_note, is_executable, to_note
from overlay_tools.checkout import UNDO, own_paths
from overlay_tools.errors import OverlayError
from overlay_tools.patches.model import README
from overlay_tools.user_files import remove_parts, write_whole
from overlay_tools.wheels.overlay_files import read_own

_WRITTEN = ("patches", "overlay", "pyproject.toml", "upstream.lock")


def read_checkout(root: Path) -> dict[str, bytes | None]:
    """Return, by path in the checkout, what `write_patches` may change, to be read before anything is decided on it."""
    paths = [path for name in _WRITTEN for path in own_paths(root / name) if path.is_file()]
    return {name: _read(root, name) for name in (path.relative_to(root).as_posix() for path in paths)}


def write_patches(
    folder: Path,
    files: Mapping[str, str],
    others: Mapping[str, bytes | None] = MappingProxyType({}),
    *,
    seen: Mapping[str, bytes | None] | None = None,
) -> list[str]:
    """Make patches/ hold these files and, beside its README.md, no others; write all of it, or if that fails nothing.

    Parameters: `others`, files to write with them by their path in the checkout, None to remove one; `seen`, what
    `read_checkout` said when it was decided what to write.
    Returns the paths in the checkout that were written or removed. What a kill leaves half done, `undo` puts back.
    Raises OverlayError if someone has changed one of these files since then.
    """
    root = folder.parent
    held = [path for path in own_paths(folder) if path.is_file() and path != folder / README]
    after = {path.relative_to(root).as_posix(): None for path in held} | dict(others)
    after |= {f"{folder.name}/{name}": text.encode() for name, text in files.items()}
    before = {name: _read(root, name) for name in after}
    if since := [] if seen is None else sorted(name for name in before if before[name] != seen.get(name)):
        raise OverlayError(
            *(f"{root / name} has changed since it was read." for name in since),
            hint="Nothing was written. Run this again.",
        )
    changed = {name: data for name, data in sorted(after.items()) if data != before[name]}
    note = {name: (to_note(before[name]), to_note(data)) for name, data in changed.items()}
    write_files(root, {UNDO: json.dumps(note).encode()})
    try:
        write_files(root, changed)
    except BaseException:
        undo(root)
        raise
    (root / UNDO).unlink()
    return list(changed)


def undo(root: Path) -> None:
    """Put back what `write_patches` has changed in a checkout, if it was killed midway.

    Raises OverlayError with the files that it leaves as they are, for someone has changed them since then, or if its
    note of them is damaged.
    """
    if not (root / UNDO).is_file():
        return
    try:
        note = {name: (before, after) for name, (before, after) in json.loads((root / UNDO).read_bytes()).items()}
    except (ValueError, TypeError, AttributeError):
        raise OverlayError(
            f"{root / UNDO}, which tells what a run was writing when it was killed, is damaged.",
            hint="See with `git status` what it has written: restore that, or keep it, and remove this file.",
        ) from None
    here = {name: to_note(_read(root, name)) for name in note}
    for name in note:
        remove_parts(root / name)
    back = {name: before for name, (before, after) in note.items() if here[name] in (before, after)}
    write_files(root, {name: from_note(noted) for name, noted in back.items()})
    (root / UNDO).unlink()
    if changed := [name for name in note if name not in back]:
        raise OverlayError(
            *(
                f"{root / name} has changed since a run that wrote it was killed, and is left as it is."
                for name in changed
            ),
            hint="The other files are as they were before that run. See that these go with them, then run this again.",
        )


def _read(root: Path, name: str) -> bytes | None:
    """Return a file of a checkout; modes are those of overlay/ alone."""
    folder, _, rest = name.partition("/")
    if folder == "overlay":
        return read_own(root, rest)
    return (root / name).read_bytes() if (root / name).is_file() else None


def write_files(folder: Path, files: Mapping[str, bytes | None]) -> None:
    """Write files by path, each whole or not at all; None removes one, and its folder if no other is in it."""
    # A file may take the place of a folder whose files go.
    for name, data in sorted(files.items(), key=lambda item: item[1] is not None):
        path = folder / name
        if data is None:
            path.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data, executable=is_executable(data))
