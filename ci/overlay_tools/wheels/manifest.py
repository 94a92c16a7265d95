"""The manifest inside a built wheel: what it was made from, and what of it is not upstream's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field

from installer.records import RecordEntry

from overlay_tools import __version__
from overlay_tools.archive.mode import is_executable
from overlay_tools.errors import VerifyError
from overlay_tools.patches.model import Patch, target_of
from overlay_tools.upstream.lockfile import LockedWheel

MANIFEST = "sglang-overlay.json"
SBOM = "sboms/sglang-overlay.cdx.json"  # its bill of materials, beside the manifest in .dist-info
SCHEMA = 1
_LEFT_OUT_IF_EMPTY = ("dependencies", "removed", "modes")
_TOOL = f"sglang-overlay-tools {__version__}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a built wheel says of itself.

    `files`: [origin, sha256] of every file that is not as upstream has it, by path; the origin is `patched`, `added`,
    `renamed`, `replaced` or `version`. `tree`: one hash over the paths and hashes of all files, see `tree_hash`.
    `dependencies`: [before, after] of each requirement that is not upstream's, null where there is none. `removed`:
    upstream's files that are not there, or have another name; `modes`: 644 or 755 for each of `files` that is
    executable, or is as upstream has it.
    """

    distribution: str
    version: str
    base: dict[str, str | int] | None
    patches: list[dict[str, object]]
    files: dict[str, list[str]]
    tree: str
    dependencies: list[list[str | None]] = field(default_factory=list)
    removed: Sequence[str] = ()
    modes: Mapping[str, str] = field(default_factory=dict)

    def dump(self) -> bytes:
        """Return the manifest as JSON: the same bytes for the same wheel."""
        data = {"schema": SCHEMA, "tool": _TOOL, **asdict(self)}
        data = {key: value for key, value in data.items() if value or key not in _LEFT_OUT_IF_EMPTY}
        return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode("utf-8")


def load_manifest(data: bytes, where: str) -> Manifest:
    """Read a manifest.

    Parameters: `where`, what an error calls it.
    Raises VerifyError if it cannot be read, or has a schema that this tool does not know.
    """
    try:
        table = json.loads(data)
        schema = table.pop("schema")
        del table["tool"]
        if schema != SCHEMA:
            raise VerifyError(
                f"{where}: the manifest has schema {schema}, not {SCHEMA}.", hint="Use the tool that built the wheel."
            )
        manifest = Manifest(**table)
        if wrong := [name for name, fits in _fits(manifest).items() if not fits]:
            raise TypeError(f"{', '.join(wrong)} has another form")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise VerifyError(f"{where}: the manifest cannot be read: {error}.", hint="Build the wheel anew.") from None
    return manifest


def _fits(manifest: Manifest) -> dict[str, bool]:
    """Tell of each field of a manifest that is used whether it has the form that it should have."""

    def texts(value: object) -> bool:
        return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)

    files, modes, changes = manifest.files, manifest.modes, manifest.dependencies
    return {
        "distribution": isinstance(manifest.distribution, str),
        "version": isinstance(manifest.version, str),
        "tree": isinstance(manifest.tree, str),
        "files": isinstance(files, dict) and all(texts(each) and len(each) == 2 for each in files.values()),
        "modes": isinstance(modes, dict) and all(isinstance(each, str) for each in modes.values()),
        "removed": texts(manifest.removed),
        "dependencies": isinstance(changes, list)
        and all(isinstance(each, list) and len(each) == 2 and texts([x or "" for x in each]) for each in changes),
    }


def describe_base(wheel: LockedWheel) -> dict[str, str | int]:
    """Return what a manifest says of the base wheel."""
    return {"name": wheel.name, "size": wheel.size, "sha256": wheel.sha256}


def describe_patches(patches: Sequence[Patch]) -> list[dict[str, object]]:
    """Return what a manifest says of the patches."""
    return [
        {
            "hook": patch.hook,
            "variant": patch.path.name,
            "sha256": patch.sha256,
            "added": patch.added,
            "removed": patch.removed,
            "files": [target_of(file) for file in patch.files],
        }
        for patch in patches
    ]


def describe_files(content: Mapping[str, bytes], origins: Mapping[str, str]) -> dict[str, list[str]]:
    """Return what a manifest says of the files that are not as upstream has them."""
    return {name: [origins[name], hashlib.sha256(data).hexdigest()] for name, data in content.items()}


def describe_modes(content: Mapping[str, bytes], executable: Set[str]) -> dict[str, str]:
    """Return what a manifest says of the mode of each file that is executable, or is as upstream has it.

    Parameters: `executable`, those that are in the base.
    """
    now = {name for name, data in content.items() if is_executable(data)}
    return {name: "755" if name in now else "644" for name in now | executable}


def tree_hash(entries: Iterable[RecordEntry], dist_info: str) -> str:
    """Return the sha256 over the paths and hashes of files, whatever their order.

    Parameters: `dist_info`, the name of the wheel's .dist-info folder; RECORD in it, which has no hash, and the
    manifest, which holds this one, are left out.
    """
    own = f"{dist_info}/{MANIFEST}"
    lines = sorted(f"{entry.path}\t{entry.hash_}\n" for entry in entries if entry.hash_ and entry.path != own)
    return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()
