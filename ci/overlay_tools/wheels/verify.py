"""Compare a wheel with the manifest inside it; what does so for an installed distribution too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from installer.records import RecordEntry

from overlay_tools.archive.mode import is_executable
from overlay_tools.archive.reader import WheelReader
from overlay_tools.archive.record import proves
from overlay_tools.errors import OverlayError, VerifyError, WheelError
from overlay_tools.wheels.dependencies import read_requirements
from overlay_tools.wheels.manifest import MANIFEST, SBOM, Manifest, load_manifest, tree_hash


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """One distribution that was compared: its name and version, how many files, and each difference as a line.

    `place`: the folder that it is installed in, None for a wheel; `upstreams`: whether it is not this project's, and
    was compared with its own RECORD.
    """

    name: str
    files: int
    differences: list[str]
    place: Path | None = None
    upstreams: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """The files of one distribution, in a wheel or installed, by their path in the wheel.

    `dist_info`: the name of its .dist-info folder; `record`: what RECORD says of the wheel's own files; `unhashed`:
    those that RECORD lists without a hash and may; `present`: the files that are there; `read`: returns the content of
    one, None if it is not there, and raises WheelError if it is damaged.
    """

    dist_info: str
    record: Mapping[str, RecordEntry]
    unhashed: AbstractSet[str]
    present: AbstractSet[str]
    read: Callable[[str], bytes | None]


def verify_wheel(path: Path) -> Verified:
    """Compare a wheel with its RECORD and its manifest.

    Raises WheelError if it cannot be read, VerifyError if it has no manifest.
    """
    with WheelReader(path) as wheel:
        data = wheel.get(f"{wheel.dist_info}/{MANIFEST}")
        if data is None:
            raise VerifyError(f"{path} has no manifest: this project did not build it.", hint="Name a wheel of dist/.")
        manifest = load_manifest(data, str(path))
        contents = Contents(
            dist_info=wheel.dist_info,
            record=wheel.record(),
            unhashed={f"{wheel.dist_info}/RECORD"},
            present={name for name in wheel.members if not name.endswith("/")},
            read=wheel.get,
        )
        return Verified(
            name=f"{manifest.distribution} {manifest.version}",
            files=len(contents.record),
            differences=[*differences_from_record(contents, manifest), *differences_from_manifest(contents, manifest)],
        )


def differences_from_record(contents: Contents, manifest: Manifest | None) -> Iterator[str]:
    """Yield a line for each file that is not as RECORD says, and for each that it does not account for.

    Parameters: `manifest`, which says whose each file is; None for a distribution of upstream's.
    """
    record = contents.record
    removed = set(manifest.removed) if manifest else set()
    back = (contents.present | record.keys()) & removed
    yield from (f"back: {shown(name)} (a hook removes it)" for name in sorted(back))
    yield from (f"foreign: {shown(name)}" for name in sorted(contents.present - record.keys() - back))
    for name, entry in sorted(record.items()):
        if not name.isprintable():
            yield f"foreign: {shown(name)} (no build writes such a name)"
            continue
        try:
            data = contents.read(name)
        except WheelError as error:
            yield f"differs: {shown(name)} ({error})"
            continue
        if data is None:
            yield f"missing: {shown(name)}"
        elif entry.hash_ is None:
            if name not in contents.unhashed:
                yield f"foreign: {shown(name)} (RECORD lists it without a hash)"
        elif not proves(entry.hash_, data):
            yield f"differs: {shown(name)} ({_whose(name, contents.dist_info, manifest)})"


def differences_from_manifest(contents: Contents, manifest: Manifest) -> Iterator[str]:
    """Yield a line for each way in which RECORD, modes and requirements are not what the manifest says."""
    for name, (origin, sha256) in sorted(manifest.files.items()):
        entry = contents.record.get(name)
        if entry is None:
            yield f"missing: {shown(name)} (not even in RECORD)"
        elif entry.hash_ is not None and (data := _get(contents, name)) is not None and proves(entry.hash_, data):
            if hashlib.sha256(data).hexdigest() != sha256:
                yield f"differs: {shown(name)} ({origin}; RECORD has been made to fit)"
            elif name in manifest.modes and is_executable(data) != (manifest.modes[name] == "755"):
                yield f"differs: {shown(name)} (its mode is not {manifest.modes[name]})"
    yield from _required_otherwise(contents, manifest)
    if tree_hash(contents.record.values(), contents.dist_info) != manifest.tree:
        yield "differs: RECORD (it lists other files or hashes than the wheel was built with)"


def shown(name: str) -> str:
    """Return a path as a person can read it, whatever is in it."""
    return name if name.isprintable() else ascii(name)


def _whose(name: str, dist_info: str, manifest: Manifest | None) -> str:
    if manifest and name in manifest.files:
        return manifest.files[name][0]
    return "the build's" if manifest and name in {f"{dist_info}/METADATA", f"{dist_info}/{SBOM}"} else "upstream's"


def _get(contents: Contents, name: str) -> bytes | None:
    try:
        return contents.read(name)
    except WheelError:
        return None


def _required_otherwise(contents: Contents, manifest: Manifest) -> Iterator[str]:
    """Yield a line for each requirement that is not changed in METADATA as the manifest says."""
    if manifest.dependencies:
        name = f"{contents.dist_info}/METADATA"
        try:
            required = read_requirements(contents.read(name) or b"", name)
        except OverlayError as error:
            yield f"differs: {name} ({error})"
            return
        added = [after for _, after in manifest.dependencies]
        for before, after in manifest.dependencies:
            if after is not None and after not in required:
                yield f"differs: {name} (it does not require {after})"
            if before in required and before not in added:
                yield f"differs: {name} (it requires {before})"
