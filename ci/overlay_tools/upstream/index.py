"""What the package index says of a release; uv and pip ask the one that they are configured for."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from overlay_tools.errors import LockError, ToolError
from overlay_tools.subprocesses import run
from overlay_tools.upstream.lockfile import PYTHONS, LockedWheel, Release, tags_of, wanted

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KERNELS = ("sgl-kernel", "sglang-kernel")


def query_release(version: str) -> Release:
    """Ask the index for a release's wheels and for what its metadata pins.

    Parameters: `version`, as "0.5.23".
    Raises LockError if the release does not exist or lacks what a lock needs, ToolError if the index does not answer.
    """
    try:
        canonical = str(Version(version))
    except InvalidVersion:
        raise LockError(f"{version!r} is not a version.", hint="Name a release of sglang, as 0.5.23.") from None
    wheels = _published_wheels(canonical)
    requires_python, requires = _metadata(canonical, wheels[0])
    requirements: dict[str, Requirement] = {}
    for line in requires:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            requirements.setdefault(canonicalize_name(requirement.name), requirement)
    kernel = next((requirements[name] for name in KERNELS if name in requirements), None)
    absent = [name for name in ("torch", "transformers") if name not in requirements]
    if kernel is None or absent:
        raise LockError(
            f"sglang {canonical} does not require {', '.join(absent) or ' or '.join(KERNELS)}.",
            hint="This tool needs a release that pins all of them.",
        )
    return Release(
        version=canonical,
        requires_python=requires_python,
        torch=_pin(requirements["torch"]),
        transformers=_pin(requirements["transformers"]),
        kernel=Requirement(f"{kernel.name}=={_pin(kernel)}"),
        wheels=tuple(wheels),
    )


def difference(locked: Release, found: Release) -> list[str]:
    """Return a line for each thing that the index now gives otherwise than the lock."""
    lines = [
        f"{locked.version}: {name} is {getattr(locked, name)} in the lock, {getattr(found, name)} on the index"
        for name in ("requires_python", "torch", "transformers", "kernel")
        if getattr(locked, name) != getattr(found, name)
    ]
    ours, theirs = ({wheel.name: wheel for wheel in release.wheels} for release in (locked, found))
    lines += [f"{locked.version}: {name} is on the index only" for name in sorted(theirs.keys() - ours.keys())]
    lines += [f"{locked.version}: {name} is in the lock only" for name in sorted(ours.keys() - theirs.keys())]
    lines += [
        f"{locked.version}: {name} has sha256 {ours[name].sha256} and {ours[name].size} bytes in the lock, "
        f"{theirs[name].sha256} and {theirs[name].size} on the index"
        for name in sorted(ours.keys() & theirs.keys())
        if ours[name] != theirs[name]
    ]
    return lines


def _published_wheels(version: str) -> list[LockedWheel]:
    found: dict[str, LockedWheel] = {}
    answers = []
    command = [*uv(), "pip", "compile", "--no-deps", "--universal", "--no-header", "--refresh", "--format=pylock.toml"]
    command += ["--python", sys.executable]  # or uv would look through every interpreter on the machine
    # A release that requires a newer Python than our oldest can only be resolved for that newer one.
    for python in PYTHONS:
        done = run(
            [*command, f"--python-version={python}", "-"],
            stdin=f"sglang=={version}\n",
            check=False,
        )
        answers.append(done)
        if done.returncode == 0:
            break
    else:
        said = answers[-1].stderr.strip()
        if "no version of sglang" in said or "not found in the package registry" in said:
            raise LockError(
                f"The index has no sglang {version}.", hint="`pip index versions sglang` lists what it has."
            )
        raise ToolError(f"The index could not be asked for sglang {version}:\n{said}", hint="Check the network.")
    if yanked := re.search(r"is yanked(?: \(reason: (.*?)\)\s*$)?", done.stderr, re.MULTILINE):
        raise LockError(
            f"sglang {version} was yanked: {(yanked[1] or 'no reason is given').strip(chr(34))}.",
            hint="Lock another release.",
        )
    for package in tomllib.loads(done.stdout)["packages"]:
        for wheel in package.get("wheels", []):
            name = wheel.get("name") or wheel["url"].rsplit("/", 1)[-1]
            if wanted(name):
                if "size" not in wheel or "sha256" not in wheel["hashes"]:
                    raise LockError(f"The index gives no size or no sha256 for {name}.", hint="Use an index that does.")
                found[name] = LockedWheel(
                    name=name, size=wheel["size"], sha256=wheel["hashes"]["sha256"], tags=tuple(tags_of(name))
                )
    if not found:
        raise LockError(
            f"sglang {version} has no wheel for CPython {PYTHONS[0]} to {PYTHONS[-1]} on Linux.",
            hint="Lock another release.",
        )
    return [found[name] for name in sorted(found)]


def _metadata(version: str, wheel: LockedWheel) -> tuple[str, list[str]]:
    """Return `Requires-Python` and `Requires-Dist` of the release, as pip reports them without installing anything."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--dry-run",
                "--ignore-installed",
                "--no-deps",
                "--target",
                folder,
                "--report",
                report,
                *pip_target(wheel),
                f"sglang=={version}",
            ]
        )
        metadata = json.loads(report.read_text(encoding="utf-8"))["install"][0]["metadata"]
    return metadata["requires_python"], metadata["requires_dist"]


def pip_target(wheel: LockedWheel) -> list[str]:
    """Return the options that make pip take exactly `wheel`, whatever interpreter and machine it runs on."""
    interpreter, abi, platform = wheel.tags[-1].split("-")
    options = ["--only-binary=:all:"]
    if interpreter.startswith("cp"):
        options += ["--implementation=cp", f"--abi={abi}", f"--python-version={interpreter[2:3]}.{interpreter[3:]}"]
    else:
        options += [f"--python-version={PYTHONS[-1]}"]
    return options if platform == "any" else [*options, f"--platform={platform}"]


def uv() -> list[str]:
    """Return the command that calls this environment's uv."""
    return [sys.executable, "-m", "uv"]


def _pin(requirement: Requirement) -> str:
    specifiers = list(requirement.specifier)
    if len(specifiers) != 1 or specifiers[0].operator != "==":
        raise LockError(
            f"The release does not pin {requirement.name} to one version: {requirement}.",
            hint="This tool needs a release that pins it with ==.",
        )
    return specifiers[0].version
