"""What a wheel is to hold: the list of its members, made before any of them is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from installer.records import Hash, RecordEntry

from overlay_tools.archive.reader import WheelReader
from overlay_tools.archive.record import PROVING, format_record, hash_of
from overlay_tools.errors import BuildError
from overlay_tools.wheels.manifest import MANIFEST, Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedMember:
    """One member of a wheel that is to be written.

    `source`: its content or, as a string, the name of the base's member whose compressed bytes it takes; `digest` and
    `size`: what RECORD says of it.
    """

    name: str
    source: bytes | str
    digest: Hash | None
    size: int | None


def new_members(content: Mapping[str, bytes]) -> list[PlannedMember]:
    """Plan members with a content of their own, in the order of their names."""
    return [
        PlannedMember(name=name, source=data, digest=hash_of(data), size=len(data))
        for name, data in sorted(content.items())
    ]


def copied_members(base: WheelReader, names: Mapping[str, str]) -> list[PlannedMember]:
    """Plan copies of a base's members, in the order of its RECORD; what it does not list, its folders, comes last.

    Parameters: `names`, the new name of each member to copy.
    Raises BuildError if the RECORD does not list one of the files or gives no hash of it that proves anything, or if an
    installer would move one to another folder.
    """
    record = base.record()
    faults = []
    for name in sorted(names):
        if name.partition("/")[0].endswith(".data"):
            faults.append(f"{base.path}: installers move {name} elsewhere, where it cannot be verified.")
        elif not name.isprintable():
            faults.append(f"{base.path}: {name!a} has a character that a wheel cannot carry everywhere.")
        elif name.endswith("/"):
            continue
        elif name not in record:
            faults.append(f"RECORD of {base.path} does not list {name}.")
        elif (digest := record[name].hash_) is None or digest.name not in PROVING:
            faults.append(f"RECORD of {base.path} gives no {', '.join(PROVING)} of {name}.")
    if faults:
        raise BuildError(*faults, hint="Lock another wheel.")
    listed = [entry for entry in record.values() if entry.path in names]
    folders = [RecordEntry(name, None, None) for name in names if name not in record]
    return [
        PlannedMember(name=names[entry.path], source=entry.path, digest=entry.hash_, size=entry.size)
        for entry in [*listed, *folders]
    ]


def complete(members: Sequence[PlannedMember], dist_info: str, manifest: Manifest) -> list[PlannedMember]:
    """Return the members followed by the wheel's manifest and, last, its RECORD."""
    members = [*members, *new_members({f"{dist_info}/{MANIFEST}": manifest.dump()})]
    record = RecordEntry(f"{dist_info}/RECORD", None, None)
    text = format_record([*record_entries(members), record])
    return [*members, PlannedMember(name=record.path, source=text, digest=None, size=None)]


def record_entries(members: Iterable[PlannedMember]) -> list[RecordEntry]:
    """Return what RECORD says of members; it says nothing of folders."""
    return [RecordEntry(member.name, member.digest, member.size) for member in members if not member.name.endswith("/")]
