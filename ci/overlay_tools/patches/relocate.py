"""A patch followed from a release that it applies to into another one: found exactly, or else only proposed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from overlay_tools.archive.mode import is_executable, with_mode
from overlay_tools.patches.apply import find_hunk
from overlay_tools.patches.edited_file import EditedTree, Part, sign
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.model import Patch, join_lines, locate, source_of, split_lines, target_of
from overlay_tools.patches.moving_hunk import MovingHunk, Placement
from overlay_tools.patches.strategies import place_hunk
from overlay_tools.patches.whole_file import act_on_whole_file, place_whole_file


@dataclass(frozen=True, kw_only=True, slots=True)
class RelocatedPatch:
    """What became of a patch.

    `files`: the files that it touches, with what is settled and what is proposed, None for those that are to go;
    `marked`: the same files with conflict markers around everything that a person is to review; `parts`: with that as
    regions, those of them whose lines change.
    """

    patch: Patch
    placements: Sequence[Placement]
    files: dict[str, bytes | None]
    marked: dict[str, bytes | None]
    parts: Mapping[str, Sequence[Part]]

    @property
    def settled(self) -> bool:
        """Tell whether every hunk is settled."""
        return all(placement.settled for placement in self.placements)


def relocate(patch: Patch, old: HookedTree, new: HookedTree) -> RelocatedPatch:
    """Follow a patch from a release that it applies to into another one.

    Parameters: `old` and `new`, both with the hooks before this one applied.
    """
    release = EditedTree(new)
    lines: dict[str, Sequence[str]] = {}  # of the old release's files, with the hunks so far
    placements = []
    for file in patch.files:
        if (whole := place_whole_file(patch, file, new)) is not None:
            placements.append(whole)
        name = source_of(file)
        lines.setdefault(name, split_lines(old.read(name) or b""))
        for hunk in file:
            moving = MovingHunk(
                hunk=hunk,
                where=locate(patch, hunk),
                name=target_of(file) if new.read(name) is None else name,
                old=lines[name],
                old_release=old,
                release=release,
            )
            placement = place_hunk(moving)
            if placement.edit is not None:
                release.apply(placement.edit)
            placements.append(placement)
            lines[name] = moving.patched
    sides = (f"sglang {new.sources.version}", f"sglang {old.sources.version}", patch.hook)
    changed = release.changed()
    mode = {name: is_executable(new.read(name) or b"") for name in changed}
    files: dict[str, bytes | None] = {
        name: with_mode(join_lines(edited.lines), executable=mode[name]) for name, edited in changed.items()
    }
    marked: dict[str, bytes | None] = {
        name: with_mode(join_lines(edited.with_markers(*sides)), executable=mode[name])
        for name, edited in changed.items()
    }
    parts = {name: [sign(part, *sides[1:]) for part in edited.parts] for name, edited in changed.items()}
    for file in patch.files:
        for made in (files, marked):
            act_on_whole_file(file, new, made)
        if (name := source_of(file)) in parts and files[name] is None:
            parts[target_of(file)] = parts.pop(name)
    parts = {name: lines for name, lines in parts.items() if files[name] is not None}
    return RelocatedPatch(patch=patch, placements=placements, files=files, marked=marked, parts=parts)


def applies_unchanged(patch: Patch, old: HookedTree, new: HookedTree) -> bool:
    """Tell whether another release takes a patch as it is, each hunk in the function where it stood.

    Unlike `relocate`, this looks for no other place. Parameters as there.
    """
    for file in patch.files:
        name = source_of(file)
        content = new.read(name)
        if content is None:
            return False
        if content != old.read(name):
            lines = split_lines(content)
            if any(len(find_hunk(lines, hunk)) != 1 for hunk in file):
                return False
    return relocate(patch, old, new).settled
