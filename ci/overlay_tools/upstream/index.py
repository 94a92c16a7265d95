"""What the package index says of a release: the one that uv and pip are configured for, or one that is named."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote

from overlay_tools.errors import LockError, ToolError, YankedError
from overlay_tools.subprocesses import run
from overlay_tools.upstream.installers import (
    pip,
    pip_download,
    pip_environment,
    pip_index,
    pip_target,
    uv,
    uv_environment,
    uv_index,
)
from overlay_tools.upstream.lockfile import PYTHONS, LockedWheel, Release, tags_of, wanted
from overlay_tools.upstream.requirements import make_release

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def query_release(version: str, index: str = "") -> Release:
    """Ask an index for a release's wheels and for what its metadata pins.

    Parameters: `version`, as PEP 440 writes it; `index`, its URL, "" for the one that uv and pip are configured for.
    Raises LockError if the release does not exist or lacks what a lock needs, ToolError if the index does not answer.
    """
    requirement, packages = _resolve(version, index)
    wheels = [
        _locked(requirement, wheel, index)
        for package in packages
        for wheel in package.get("wheels", [])
        if wanted(_name(wheel))
    ]
    if not wheels:
        raise _no_wheel(version)
    wheels.sort(key=lambda wheel: wheel.name)
    return make_release(version, *_metadata(requirement, wheels, index), wheels, index)


def difference(locked: Release, found: Release) -> list[str]:
    """Return a line for each thing that its index or its files now give otherwise than the lock."""
    where = "in the files" if any(wheel.path for wheel in locked.wheels) else "on the index"
    lines = [
        f"{locked.version}: {name} is {getattr(locked, name)} in the lock, {getattr(found, name)} {where}"
        for name in ("requires_python", "torch", "transformers", "kernel")
        if getattr(locked, name) != getattr(found, name)
    ]
    ours, theirs = ({wheel.name: wheel for wheel in release.wheels} for release in (locked, found))
    lines += [f"{locked.version}: {name} is {where} only" for name in sorted(theirs.keys() - ours.keys())]
    lines += [f"{locked.version}: {name} is in the lock only" for name in sorted(ours.keys() - theirs.keys())]
    lines += [
        f"{locked.version}: {name} has sha256 {ours[name].sha256} and {ours[name].size} bytes in the lock, "
        f"{theirs[name].sha256} and {theirs[name].size} {where}"
        for name in sorted(ours.keys() & theirs.keys())
        if (ours[name].sha256, ours[name].size) != (theirs[name].sha256, theirs[name].size)
    ]
    return lines


def _resolve(version: str, index: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the requirement that stands for a release and nothing else on its index, and what uv found for it."""
    requirement = f"sglang=={version}"
    # Whoever asks for 2.0 is given 2.0+cu130 too, if the index has it, and before 2.0 itself.
    for _ in range(20):
        done = _ask_uv(version, requirement, index)
        packages: list[dict[str, Any]] = tomllib.loads(done.stdout)["packages"]
        others = [package["version"] for package in packages if package["version"] != version]
        if not others:
            break
        requirement += "".join(f",!={other}" for other in others)
    if yanked := re.search(r"is yanked(?: \(reason: (.*?)\)\s*$)?", done.stderr, re.MULTILINE):
        raise YankedError(
            f"sglang {version} was yanked: {(yanked[1] or 'no reason is given').strip(chr(34))}.",
            hint="Lock another release.",
        )
    return requirement, packages


def _ask_uv(version: str, requirement: str, index: str) -> CompletedProcess[str]:
    # The interpreter is named, or uv would look through every one on the machine.
    words = [*uv(), "pip", "compile", "--no-deps", "--universal", "--no-header", "--python", sys.executable]
    words += uv_index(index)
    # A release that requires a newer Python than our oldest can only be resolved for that newer one.
    for python in PYTHONS:
        asked = [*words, f"--python-version={python}"]
        stdin, env = f"{requirement}\n", uv_environment(index)
        done = run([*asked, "--refresh", "--format=pylock.toml", "-"], stdin=stdin, env=env, check=False)
        if done.returncode == 0:
            break
    else:
        said = done.stderr.strip()
        where = index or "The index"
        if "no wheels with a matching" in said:
            raise _no_wheel(version)
        others = requirement.split(",!=")[1:]
        if others or "no version of sglang" in said or "not found in the package registry" in said:
            raise LockError(
                f"{where} has no sglang {version}{f', but {chr(32).join(others)}' if others else ''}.",
                hint=f"`pip index versions sglang{f' --index-url {index}' if index else ''}` lists what it has.",
            )
        raise ToolError(f"{where} could not be asked for sglang {version}:\n{said}", hint="Check the network.")
    return done


def _no_wheel(version: str) -> LockError:
    return LockError(
        f"sglang {version} has no wheel for CPython {PYTHONS[0]} to {PYTHONS[-1]} on Linux.",
        hint="Lock another release.",
    )


def _name(wheel: dict[str, Any]) -> str:
    return str(wheel.get("name") or unquote(wheel["url"].rpartition("/")[2]))


def _locked(requirement: str, wheel: dict[str, Any], index: str) -> LockedWheel:
    """Return what the lock has of a published wheel; one whose size the index does not say is downloaded for it."""
    name = _name(wheel)
    if "sha256" not in wheel["hashes"]:
        raise LockError(f"The index gives no sha256 for {name}.", hint="Use an index that does, or lock the file.")
    locked = LockedWheel(
        name=name, size=wheel.get("size", 0), sha256=wheel["hashes"]["sha256"], tags=tuple(tags_of(name))
    )
    if locked.size:
        return locked
    with TemporaryDirectory() as folder:
        pip_download(requirement, locked, index, Path(folder))
        return replace(locked, size=(Path(folder) / name).stat().st_size)


def _metadata(requirement: str, wheels: list[LockedWheel], index: str) -> tuple[str, list[str]]:
    """Return `Requires-Python` and `Requires-Dist` of the release, as pip reports them without installing anything.

    Raises LockError if pip takes another file than those that uv has found.
    """
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--dry-run", "--ignore-installed", "--no-deps", *pip_index(index), *pip_target(wheels[0])]
        files: list[str | Path] = ["--target", folder, "--report", report]
        run([*pip(), "install", "--quiet", *options, *files, requirement], env=pip_environment("install", index))
        (item,) = json.loads(report.read_text(encoding="utf-8"))["install"]
    sha256 = item["download_info"]["archive_info"].get("hashes", {}).get("sha256")
    if sha256 not in [wheel.sha256 for wheel in wheels]:
        raise LockError(
            f"pip takes {item['download_info']['url'].rpartition('/')[2]} with sha256 {sha256} for {requirement};"
            " uv has found other wheels.",
            hint="Have uv and pip ask the same index: `pip config list` says which one pip asks.",
        )
    return item["metadata"].get("requires_python", ""), item["metadata"].get("requires_dist", [])
