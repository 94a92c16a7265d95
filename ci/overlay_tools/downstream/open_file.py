"""Files in which hooks are open, while later hooks are placed in them as if what is proposed were settled."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Literal

from overlay_tools.patches.edited_file import Part, Region
from overlay_tools.patches.line_diff import find_changes

Side = Literal["shown", "theirs"]  # what stands in the place of a region: what it shows, or what its hook makes of it


def flatten(parts: Sequence[Part], side: Side) -> list[str]:
    """Return the lines of a file with one side of each region in its place."""
    return [line for part in parts for line in ([part] if isinstance(part, str) else _lines(part, side))]


def put_back(parts: Sequence[Part], side: Side, result: Sequence[Part]) -> tuple[Sequence[Part], Set[str]]:
    """Return a file with its regions, changed as a hook has changed the one without them.

    Parameters: `parts`, the file; `result`, what a hook made of its `flatten`ed lines.
    Returns also the hooks that must be settled first, for their regions and what is changed overlap: then the parts are
    of no use.
    """
    owners = [n for n, part in enumerate(parts) for _ in ([part] if isinstance(part, str) else _lines(part, side))]
    flat = flatten(parts, side)
    proposals = {f"\x1a{n}": part for n, part in enumerate(result) if isinstance(part, Region)}
    names = {id(part): name for name, part in proposals.items()}
    lines = [part if isinstance(part, str) else names[id(part)] for part in result]
    made, waits = list(parts), set[str]()
    for change in reversed(find_changes(flat, lines)):
        added: list[Part] = [proposals.get(line, line) for line in lines[change.new_start : change.new_end]]
        touched = sorted({*owners[change.start : change.end]})
        around = touched or sorted({*owners[max(change.start - 1, 0) : change.start + 1]})
        regions = [
            part for part in parts[min(around, default=0) : max(around, default=0) + 1] if isinstance(part, Region)
        ]
        if not touched and (len(around) > 1 or not regions):
            at = around[0] + 1 if change.start else 0
            made[at:at] = added
        elif not regions:
            made[touched[0] : touched[-1] + 1] = added
        elif len(around) == 1 and not any(isinstance(part, Region) for part in added):
            (region,) = regions
            first = owners.index(around[0])
            current = made[around[0]]
            assert isinstance(current, Region)
            inner = list(_lines(current, side))
            inner[change.start - first : change.end - first] = [part for part in added if isinstance(part, str)]
            is_ours = _name(region, side) == "ours"
            made[around[0]] = replace(current, ours=inner) if is_ours else replace(current, theirs=inner)
        else:
            waits |= {region.hook for region in regions}
    return made, waits


def _lines(region: Region, side: Side) -> Sequence[str]:
    return region.theirs if _name(region, side) == "theirs" else region.ours


def _name(region: Region, side: Side) -> Literal["ours", "theirs"]:
    return "ours" if side == "shown" and region.conflict else "theirs"
