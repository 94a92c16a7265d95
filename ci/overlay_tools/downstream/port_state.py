"""A port that is in progress, as it is noted between two commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from overlay_tools.errors import LockError, PortError
from overlay_tools.upstream.lockfile import Release, dump_lock, load_lock

_NOTE = "state.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PortState:
    """The release to be locked, and what was said of its hooks.

    `dropped`: due until then and no longer; `taken` and `left`: not due, and asked for or not; `open`: the one to be
    settled, or "".
    """

    release: Release
    dropped: Sequence[str] = ()
    taken: Sequence[str] = ()
    left: Sequence[str] = ()
    open: str = ""

    @classmethod
    def read(cls, folder: Path) -> PortState:
        """Return the port that is noted in a folder.

        Raises PortError if there is none, or its note is damaged.
        """
        path = folder / _NOTE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            (folder / "release.lock").write_text(data["release"], encoding="utf-8")
            (release,) = load_lock(folder / "release.lock", folder.parents[1]).values()  # of the checkout
            return cls(**data | {"release": release})
        except FileNotFoundError:
            raise no_port() from None
        except (ValueError, KeyError, TypeError, LockError) as error:
            hint = "`nox -s port -- --abort`, and begin again."
            raise PortError(f"{path} is damaged: {error}.", hint=hint) from None

    def write(self, folder: Path) -> None:
        """Note the port in a folder, all of it or nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        data = {
            "release": dump_lock({self.release.version: self.release}),
            "dropped": list(self.dropped),
            "taken": list(self.taken),
            "left": list(self.left),
            "open": self.open,
        }
        part = folder / ".state.part"
        part.write_text(json.dumps(data), encoding="utf-8")
        part.replace(folder / _NOTE)


def in_progress(folder: Path) -> bool:
    """Tell whether a port is noted in a folder."""
    return (folder / _NOTE).exists()


def no_port() -> PortError:
    """Return the error of a command that goes on with a port where there is none."""
    return PortError("There is no port in progress.", hint="`nox -s port -- VERSION` begins one.")
