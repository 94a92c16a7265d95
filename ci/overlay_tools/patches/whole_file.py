"""What a patch does to a file as a whole, in another release: its deletion, its new name, its mode."""

from __future__ import annotations

from unidiff import PatchedFile

from overlay_tools.archive.mode import is_executable, with_mode
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.model import (
    Patch,
    blob_id,
    blob_of,
    deletes,
    locate_file,
    modes_of,
    renames,
    source_of,
    target_of,
)
from overlay_tools.patches.moving_hunk import Placement


def place_whole_file(patch: Patch, file: PatchedFile, new: HookedTree) -> Placement | None:
    """Return what becomes of a deletion, a rename or a change of mode; None if a patch changes lines alone."""
    name, target, modes = source_of(file), target_of(file), modes_of(file)
    if not (deletes(file) or renames(file) or modes):
        return None
    content, taken = new.read(name), renames(file) and new.read(target) is not None
    outcome, note = "exact", _describe(file)
    if content is None and deletes(file):
        outcome, note = "upstream", "the release does not have it either"
    elif content is None:
        outcome, note = ("upstream", f"the release has {target}, and no {name}") if taken else ("target gone", "")
    elif taken:
        outcome, note = "conflict", f"the release has a file {target} of its own"
    elif blob_of(file) not in ("", blob_id(content)):
        outcome, note = "conflict", f"the file has changed; {note} is proposed all the same"
    elif modes and is_executable(content) != modes[0]:
        has = f"it is {'' if modes[1] else 'not '}executable there already"
        outcome, note = ("upstream", has) if not renames(file) else ("half-upstream", f"{has}; {note} is proposed")
    where = locate_file(patch, file)
    note = note or f"{name} is gone"
    return Placement(where=where, file=name, line=0, scope="", outcome=outcome, note=note, edit=None)


def act_on_whole_file(file: PatchedFile, new: HookedTree, files: dict[str, bytes | None]) -> None:
    """Delete or rename a file of the new release, or change its mode, among those that a patch changes.

    Parameters: `files`, these, by path, with the lines that the patch gives them; they are changed.
    """
    name, target, modes = source_of(file), target_of(file), modes_of(file)
    upstream = new.read(name)
    if upstream is None:
        return
    content = files.get(name, upstream)
    assert content is not None
    made = with_mode(content, executable=modes[1] if modes else is_executable(upstream))
    if deletes(file):
        files[name] = None
    elif renames(file) and new.read(target) is None:
        files |= {name: None, target: made}
    elif made != upstream:
        files[name] = made


def _describe(file: PatchedFile) -> str:
    if deletes(file):
        return "the deletion"
    return f"the name {target_of(file)}" if renames(file) else "the mode"
