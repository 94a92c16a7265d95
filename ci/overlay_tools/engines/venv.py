"""An environment that commands share: made once, by one of them at a time, and not while another runs from it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import ReadWriteLock, Timeout

from overlay_tools import console
from overlay_tools.errors import OverlayError
from overlay_tools.subprocesses import held_by_what_is_started, run
from overlay_tools.upstream.installers import uv, uv_environment
from overlay_tools.upstream.lockfile import THIS_PYTHON
from overlay_tools.user_files import write_whole

_PATIENCE = 600.0  # seconds that a command waits for others
_STAMP = "sglang-overlay.json"
_VERSION = "import platform; print(platform.python_version())"


@contextmanager
def open_environment(
    folder: Path, python: str | None, wheels: Sequence[Path], extras: Sequence[str], left_out: Sequence[str] = ()
) -> Iterator[Path]:
    """Make an environment that holds `wheels`, what they pin and `extras`, or bring an older one up to date.

    Parameters: `python`, the minor version of CPython to make it with, as "3.12", this one's if None; `left_out`,
    distributions that are not installed although something requires them.
    Yields the environment's interpreter; until the block ends no other command changes the environment. A killed
    process holds nothing.
    Raises OverlayError if another command does not let go of it, or a wheel changes while it is installed; ToolError,
    with what uv said, if something cannot be installed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = ReadWriteLock(folder.with_name(f"{folder.name}.lock"), is_singleton=False)
    # That goes with this process. What a killed one has started ends a moment later, and holds another lock until then.
    busy = folder.with_name(f"{folder.name}.busy")
    source = (
        os.path.realpath(getattr(sys, "_base_executable", sys.executable))
        if python in (None, THIS_PYTHON)
        else str(python)
    )
    content = {
        "wheels": [_sha256(wheel) for wheel in wheels],
        "names": [wheel.name.partition("-")[0] for wheel in wheels],
        "extras": [*extras],
        "left out": [*left_out],
    }
    waiting = _Waiting()
    while True:
        with _held(lock, lock.acquire_read) as held:
            if held and _is_current(folder, source, content):
                with held_by_what_is_started(busy, fcntl.LOCK_SH):
                    yield folder / "bin" / "python"
                return
        if not held:
            waiting.go_on(f"makes {folder}")
            continue
        with _held(lock, lock.acquire_write) as held:
            if held and not _is_current(folder, source, content):
                with held_by_what_is_started(busy, fcntl.LOCK_EX):
                    _make(folder, source, wheels, content)
        if not held:  # who held it may have made the very same: look again before the next attempt
            waiting.go_on(f"runs from {folder}, which has to change")


@contextmanager
def _held(lock: ReadWriteLock, acquire: Callable[[float], object]) -> Iterator[bool]:
    """Hold a lock, or tell that others hold it."""
    try:
        acquire(1)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


class _Waiting:
    """Says what a command waits for, and how long it does."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._said: set[str] = set()

    def go_on(self, what: str) -> None:
        """Say what another command does. Raises OverlayError if this one has waited long enough."""
        if what not in self._said:
            self._said.add(what)
            console.line(f"Another command {what}: waiting for it to end.")
        if time.monotonic() - self._since > _PATIENCE:
            raise OverlayError(
                f"After {_PATIENCE:.0f} seconds, another command still {what}.",
                hint="Wait for it, or end it: `serve --keep` runs until Ctrl-C.",
            )


def _make(folder: Path, source: str, wheels: Sequence[Path], content: Mapping[str, Sequence[str]]) -> None:
    interpreter, stamp = folder / "bin" / "python", folder / _STAMP
    fault = _fault(folder, source, content["names"])
    if fault is None or fault:
        if fault:
            console.line(f"{folder} is made anew: {fault}.")
        # An environment without its stamp is one whose making was cut short.
        shutil.rmtree(folder, ignore_errors=True)
        run([*uv(), "venv", "--no-project", "--python", source, folder], env=uv_environment())
    stamp.unlink(missing_ok=True)
    overrides = folder / "overrides.txt"
    write_whole(overrides, "".join(f"{name} ; python_version < '3'\n" for name in content["left out"]).encode())
    command: list[str | Path] = [*uv(), "pip", "install", "--quiet", "--prerelease=allow", "--python", interpreter]
    # In a path that stands by itself uv takes ` #`, `;` and `$NAME` for its own, and decodes `%20` twice in a URL.
    files = [f"{wheel.name.partition('-')[0]} @ {wheel.absolute().as_uri()}" for wheel in wheels]
    run([*command, "--overrides", overrides, *files, *content["extras"]], env=uv_environment())
    if changed := [wheel for wheel, sha256 in zip(wheels, content["wheels"], strict=True) if _sha256(wheel) != sha256]:
        raise OverlayError(
            *(f"{wheel} changed while it was installed." for wheel in changed),
            hint="Another command has built it anew: run this again.",
        )
    made = {"source": [source], "python": _python(interpreter), "packages": _packages(folder), **content}
    write_whole(stamp, (json.dumps(made, indent=1) + "\n").encode())


def _is_current(folder: Path, source: str, content: Mapping[str, Sequence[str]]) -> bool:
    return _fault(folder, source, content["names"]) == "" and content.items() <= _stamp(folder).items()


def _fault(folder: Path, source: str, names: Sequence[str]) -> str | None:
    """Return why an environment has to be made anew, "" if it need not be, None if it has never been made whole.

    Parameters: `names`, of the wheels that it is to hold.
    """
    made, interpreter = _stamp(folder), folder / "bin" / "python"
    if not made:
        return None
    path, version = made["python"]
    if not interpreter.exists():
        return f"its interpreter {path} is gone"
    if (now := _python(interpreter)) != [path, version]:
        return f"it was made with Python {version} of {path}, which is {' of '.join(reversed(now))} now"
    if source not in (*made["source"], path, version.rpartition(".")[0]):  # a launcher's path is not the interpreter's
        return f"it was made with {path}, and this runs with {source}"
    if other := [name for name in made.get("names", []) if name not in names]:
        return f"it holds {' and '.join(other)}, which it is not to hold now"
    if made["packages"] != _packages(folder):
        return "its packages were changed by something else"
    return ""


def _stamp(folder: Path) -> dict[str, list[str]]:
    """Return what was written of an environment when it was made, nothing if it was not made whole."""
    try:
        made = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return made if isinstance(made, dict) and {"source", "python", "packages"} <= made.keys() else {}


def _python(interpreter: Path) -> list[str]:
    """Return an interpreter's own path and its version; no version if it does not run."""
    return [os.path.realpath(interpreter), run([interpreter, "-I", "-c", _VERSION], check=False).stdout.strip()]


def _packages(folder: Path) -> list[str]:
    """Return a digest of which packages an environment has, and of when they were installed."""
    records = sorted(folder.glob("lib/python*/site-packages/*.dist-info/RECORD"))
    found = [(path.parent.name, path.stat().st_size, path.stat().st_mtime_ns) for path in records]
    return [hashlib.sha256(repr(found).encode()).hexdigest()]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
