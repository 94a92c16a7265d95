"""Compare a wheel, or what an environment has of it, with the manifest inside."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from overlay_tools.archive.reader import WheelReader
from overlay_tools.archive.record import RecordRow, parse_record, record_digest
from overlay_tools.errors import ToolError, VerifyError, WheelError
from overlay_tools.subprocesses import run
from overlay_tools.wheels.manifest import MANIFEST, Manifest, load_manifest, tree_hash

# What installers write into .dist-info beside the wheel's own files (PyPA, "Recording installed projects").
_INSTALLERS = ("INSTALLER", "REQUESTED", "direct_url.json", "uv_build.json", "uv_cache.json")
_FIND = """
import importlib.metadata, json, sys
found = [d for d in importlib.metadata.distributions()
         if (d.metadata["Name"] or "").lower().replace("_", "-") in ("sglang", "sglang-kernel", "sgl-kernel")]
print(json.dumps([str(d._path) for d in found]))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """One distribution that was compared: its name and version, how many files, and each difference as a line."""

    name: str
    files: int
    differences: Sequence[str]


def verify_wheel(path: Path) -> Verified:
    """Compare a wheel with its RECORD and its manifest.

    Raises WheelError if it cannot be read, VerifyError if it has no manifest.
    """
    with WheelReader(path) as wheel:
        if f"{wheel.dist_info}/{MANIFEST}" not in wheel.members:
            raise VerifyError(
                f"{path} has no manifest: it is not one of this project's.", hint="Name a wheel of dist/."
            )
        manifest = load_manifest(wheel.read(f"{wheel.dist_info}/{MANIFEST}"), str(path))
        rows = wheel.record()
        members = {name for name in wheel.members if not name.endswith("/")}

        def read(name: str) -> bytes | None:
            return wheel.read(name) if name in wheel.members else None

        return _compare(manifest, rows, rows, members, read)


def verify_environment(python: str) -> list[Verified]:
    """Compare what an environment has of this project's wheels with their manifests.

    Parameters: `python`, the environment's interpreter.
    Raises VerifyError if it is none, or has no sglang, or one that is not this project's.
    """
    try:
        done = run([python, "-I", "-c", _FIND], check=False)
    except (ToolError, PermissionError):
        raise VerifyError(f"{python} is no Python.", hint="Name an environment's interpreter.") from None
    try:
        folders = [Path(folder) for folder in json.loads(done.stdout)]
    except ValueError:
        raise VerifyError(f"{python} is no Python:\n{done.stderr.strip()}", hint="Name an environment's.") from None
    ours = [folder for folder in folders if (folder / MANIFEST).exists()]
    if not any(folder.name.startswith("sglang-") and "+overlay" in folder.name for folder in ours):
        found = ", ".join(folder.name.removesuffix(".dist-info") for folder in folders) or "no sglang"
        raise VerifyError(f"{python} has {found}, and no overlay build of sglang.", hint="Install a wheel of dist/.")
    return [_verify_installed(folder) for folder in ours]


def _verify_installed(folder: Path) -> Verified:
    site = folder.parent
    manifest = load_manifest((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))
    rows = parse_record((folder / "RECORD").read_text(encoding="utf-8"))
    added = {f"{folder.name}/{name}" for name in _INSTALLERS}
    shipped = {
        path: row for path, row in rows.items() if path not in added and not path.startswith("..") and not _cached(path)
    }
    # The folders to look in for foreign files are the wheel's own packages; site-packages itself is shared.
    tops = {PurePosixPath(path).parts[0] for path in shipped}
    present = {
        path.relative_to(site).as_posix() for top in sorted(tops) for path in (site / top).rglob("*") if path.is_file()
    }
    present = {path for path in present if path not in added and not _cached(path)}

    def read(name: str) -> bytes | None:
        path = site / name
        return path.read_bytes() if path.is_file() else None

    return _compare(manifest, rows, shipped, present, read)


def _compare(
    manifest: Manifest,
    rows: Mapping[str, RecordRow],
    shipped: Mapping[str, RecordRow],
    present: set[str],
    read: Callable[[str], bytes | None],
) -> Verified:
    differences = [f"foreign: {name}" for name in sorted(present - rows.keys())]
    for name, row in sorted(shipped.items()):
        try:
            data = read(name)
        except WheelError as error:
            differences.append(f"differs: {name} ({error})")
            continue
        if data is None:
            differences.append(f"missing: {name}")
        elif row.digest and record_digest(data) != row.digest:
            origin = manifest.files[name][0] if name in manifest.files else "upstream's"
            differences.append(f"differs: {name} ({origin})")
    differences += [f"missing: {name} (not even in RECORD)" for name in sorted(manifest.files.keys() - rows.keys())]
    if tree_hash(shipped.values()) != manifest.tree:
        differences.append("differs: RECORD (it lists other files or hashes than the wheel was built with)")
    return Verified(name=f"{manifest.distribution} {manifest.version}", files=len(shipped), differences=differences)


def _cached(path: str) -> bool:
    return "__pycache__" in PurePosixPath(path).parts
