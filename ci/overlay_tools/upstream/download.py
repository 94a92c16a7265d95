"""Base wheels: fetched with pip, checked against the locked hash, kept in a cache outside the checkout."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from overlay_tools.errors import FetchError, ToolError
from overlay_tools.subprocesses import run
from overlay_tools.upstream.index import pip_target
from overlay_tools.upstream.lockfile import LockedWheel, Release


def fetch(release: Release, wheel: LockedWheel, cache: Path) -> Path:
    """Return the path of a base wheel in the cache, fetching it first if it is not there.

    The file has the locked size and sha256.
    Raises FetchError if the index does not have it, does not answer, or gives another file.
    """
    path = cache / wheel.sha256 / wheel.name
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache, prefix="fetch-") as folder:
            _download(release, wheel, Path(folder))
            path.parent.mkdir(exist_ok=True)
            (Path(folder) / wheel.name).replace(path)
    check(path, wheel)
    return path


def check(path: Path, wheel: LockedWheel) -> None:
    """Check that a file has the size and the sha256 of a locked wheel.

    Raises FetchError if it has not.
    """
    retry = f"Delete {path} and run this again to fetch it anew."
    size = path.stat().st_size
    if size != wheel.size:
        raise FetchError(
            f"{path} has {size} bytes, upstream.lock says {wheel.size}: it is truncated, or another file.", hint=retry
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise FetchError(f"{path} has sha256 {digest}, upstream.lock says {wheel.sha256}.", hint=retry)


def _download(release: Release, wheel: LockedWheel, folder: Path) -> None:
    requirement = folder / "requirement.txt"
    requirement.write_text(f"sglang=={release.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    try:
        run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--require-hashes",
                "--quiet",
                "--disable-pip-version-check",
                *pip_target(wheel),
                "--dest",
                folder,
                "--requirement",
                requirement,
            ]
        )
    except ToolError as error:
        raise FetchError(
            f"{wheel.name} could not be fetched:\n{error}",
            hint="Check the network, and that the index that pip uses still has this file: `nox -s lock -- --check`.",
        ) from None
    if not (folder / wheel.name).exists():
        got = ", ".join(sorted(path.name for path in folder.glob("*.whl"))) or "nothing"
        raise FetchError(f"pip fetched {got}, not {wheel.name}.", hint="Run `nox -s lock -- --check`.")
