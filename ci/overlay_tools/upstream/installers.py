"""How uv and pip are told which index to ask, and which wheel to take."""

from __future__ import annotations

import sys
from pathlib import Path

from overlay_tools.subprocesses import run
from overlay_tools.upstream.lockfile import PLATFORMS, PYTHONS, LockedWheel

# What would have uv and pip look elsewhere too, where one index is named.
_OTHER_PLACES = ("UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS")


def uv() -> list[str]:
    """Return the command that calls this environment's uv."""
    return [sys.executable, "-m", "uv"]


def pip() -> list[str]:
    """Return the command that calls this environment's pip."""
    return [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def uv_index(index: str) -> list[str]:
    """Return the options that make uv ask one index first, or those that it is configured for."""
    return ["--index", index, "--default-index", index] if index else []


def pip_index(index: str) -> list[str]:
    """Return the options that make pip ask one index, or those that it is configured for."""
    return ["--index-url", index] if index else []


def index_environment(index: str) -> dict[str, str | None]:
    """Return what changes in the environment of uv and pip where one index is named."""
    return dict.fromkeys(_OTHER_PLACES) if index else {}


def pip_target(wheel: LockedWheel) -> list[str]:
    """Return the options that make pip take exactly `wheel`, whatever interpreter and machine it runs on."""
    _, abi, platform = wheel.tags[-1].split("-")
    python = next(python for python in reversed(PYTHONS) if any(wheel.fits(python, machine) for machine in PLATFORMS))
    options = ["--only-binary=:all:", "--ignore-requires-python", f"--python-version={python}"]
    if abi != "none":
        options += ["--implementation=cp", f"--abi={abi}"]
    return options if platform == "any" else [*options, f"--platform={platform}"]


def pip_download(requirement: str, wheel: LockedWheel, index: str, folder: Path) -> None:
    """Download a wheel, whose sha256 is known, into a folder.

    Parameters: `requirement`, as "sglang==0.5.23".
    Raises ToolError, with what pip said, if there is no such file.
    """
    pinned = folder / "requirement.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--require-hashes", "--quiet", *pip_index(index), *pip_target(wheel)]
    run([*pip(), "download", *options, "--dest", folder, "--requirement", pinned], env=index_environment(index))
