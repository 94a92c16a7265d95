"""Compare a wheel, or what an environment has of it, with the manifest inside it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from installer.records import RecordEntry

from overlay_tools.archive.mode import is_executable, with_mode
from overlay_tools.archive.reader import WheelReader
from overlay_tools.archive.record import hash_of, parse_record
from overlay_tools.errors import OverlayError, ToolError, VerifyError, WheelError
from overlay_tools.subprocesses import run
from overlay_tools.wheels.dependencies import read_requirements
from overlay_tools.wheels.manifest import MANIFEST, Manifest, load_manifest, tree_hash

# What installers write into .dist-info beside the wheel's own files (PyPA, "Recording installed projects").
_INSTALLERS = ("INSTALLER", "REQUESTED", "direct_url.json", "uv_build.json", "uv_cache.json")
_NAME = "Name the interpreter of an environment, as .venv/bin/python."
_OURS = re.compile(r"sglang-[^+]+\+(.+\.)?overlay\.\d+\.dist-info")
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
        data = wheel.get(f"{wheel.dist_info}/{MANIFEST}")
        if data is None:
            raise VerifyError(f"{path} has no manifest: this project did not build it.", hint="Name a wheel of dist/.")
        record = wheel.record()
        members = {name for name in wheel.members if not name.endswith("/")}
        return _compare(load_manifest(data, str(path)), record, record, members, wheel.get)


def verify_environment(python: str) -> list[Verified]:
    """Compare what an environment has of this project's wheels with their manifests.

    Parameters: `python`, the environment's interpreter.
    Raises VerifyError if it is not a Python interpreter, or its environment has no sglang that this project built.
    """
    try:
        done = run([python, "-I", "-c", _FIND], check=False)
    except (ToolError, OSError):
        raise VerifyError(f"{python} is not a Python interpreter: it cannot be run.", hint=_NAME) from None
    try:
        folders = [Path(folder) for folder in json.loads(done.stdout)]
    except ValueError:
        said = done.stderr.strip() or "it did not answer"
        raise VerifyError(f"{python} is not a Python interpreter: {said}", hint=_NAME) from None
    ours = [folder for folder in folders if (folder / MANIFEST).exists()]
    if not any(_OURS.fullmatch(folder.name) for folder in ours):
        found = ", ".join(folder.name.removesuffix(".dist-info") for folder in folders)
        what = f"{found}, which is not an overlay build of sglang" if found else "no sglang"
        raise VerifyError(f"The environment of {python} has {what}.", hint="Install a wheel of dist/ there.")
    return [_verify_installed(folder) for folder in ours]


def _verify_installed(folder: Path) -> Verified:
    site = folder.parent
    try:
        manifest = load_manifest((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))
        record = parse_record((folder / "RECORD").read_bytes(), str(folder / "RECORD"))
    except OSError as error:
        raise VerifyError(f"{error.filename}: {error.strerror}.", hint="Install the wheel anew.") from None
    of_the_installer = {f"{folder.name}/{name}" for name in _INSTALLERS}
    shipped = {
        path: entry
        for path, entry in record.items()
        if path not in of_the_installer and not path.startswith("..") and not _cached(path)
    }
    # Foreign files are looked for in the wheel's own packages only: other distributions share site-packages.
    tops = {PurePosixPath(path).parts[0] for path in shipped}
    present = {
        path.relative_to(site).as_posix() for top in sorted(tops) for path in (site / top).rglob("*") if path.is_file()
    }
    present = {path for path in present if path not in of_the_installer and not _cached(path)}

    def read(name: str) -> bytes | None:
        path = site / name
        return with_mode(path.read_bytes(), executable=os.access(path, os.X_OK)) if path.is_file() else None

    return _compare(manifest, record, shipped, present, read)


def _compare(
    manifest: Manifest,
    record: Mapping[str, RecordEntry],
    shipped: Mapping[str, RecordEntry],
    present: set[str],
    read: Callable[[str], bytes | None],
) -> Verified:
    """Compare files with a manifest.

    Parameters: `record`, every entry of RECORD; `shipped`, those of the wheel's own files; `present`, the paths of the
    files that are there; `read` returns the content of one, or None if it is not there.
    """
    back = (present | record.keys()) & set(manifest.removed)
    differences = [f"back: {name} (a hook removes it)" for name in sorted(back)]
    differences += [f"foreign: {name}" for name in sorted(present - record.keys() - back)]
    for name, entry in sorted(shipped.items()):
        try:
            data = read(name)
        except WheelError as error:
            differences.append(f"differs: {name} ({error})")
            continue
        if data is None:
            differences.append(f"missing: {name}")
        elif entry.hash_ and entry.hash_ != hash_of(data):
            ours = "the build's" if name.endswith(".dist-info/METADATA") else "upstream's"
            origin = manifest.files[name][0] if name in manifest.files else ours
            differences.append(f"differs: {name} ({origin})")
        elif name in manifest.modes and is_executable(data) != (manifest.modes[name] == "755"):
            differences.append(f"differs: {name} (its mode is not {manifest.modes[name]})")
    differences += [f"missing: {name} (not even in RECORD)" for name in sorted(manifest.files.keys() - record.keys())]
    differences += _required_otherwise(manifest, shipped, read)
    if tree_hash(shipped.values()) != manifest.tree:
        differences.append("differs: RECORD (it lists other files or hashes than the wheel was built with)")
    return Verified(name=f"{manifest.distribution} {manifest.version}", files=len(shipped), differences=differences)


def _required_otherwise(
    manifest: Manifest, shipped: Iterable[str], read: Callable[[str], bytes | None]
) -> Iterator[str]:
    """Yield a line for each requirement that is not changed in METADATA as the manifest says."""
    if manifest.dependencies:
        name = next((name for name in shipped if name.endswith(".dist-info/METADATA")), "")
        try:
            required = read_requirements(read(name) or b"", name)
        except OverlayError as error:
            yield f"differs: {name} ({error})"
            return
        added = [after for _, after in manifest.dependencies]
        for before, after in manifest.dependencies:
            if after is not None and after not in required:
                yield f"differs: {name} (it does not require {after})"
            if before in required and before not in added:
                yield f"differs: {name} (it requires {before})"


def _cached(path: str) -> bool:
    return "__pycache__" in PurePosixPath(path).parts
