"""A port that is in progress, as it is noted between two commands."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from overlay_tools.archive.mode import from_note, to_note
from overlay_tools.downstream.port_worktree import Move
from overlay_tools.errors import LockError, PortError
from overlay_tools.upstream.lockfile import Release, dump_lock, load_lock
from overlay_tools.user_files import write_whole

_NOTE = "state.json"


# What a person has settled of a hook: by path what a file is before it and after it, None where it is not there.
Kept = Mapping[str, tuple[bytes | None, bytes | None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Followed:
    """A hook that was found to hold: what it was (the hash of its diff), where, and what was found.

    `files`: the hash of the files that it changes, before it; `rows`: what the table says of it.
    """

    diff: str
    files: str
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class PortState:
    """The release to be locked, and what was said of its hooks.

    `dropped`: due until then and no longer; `taken` and `left`: not due, and asked for or not; `open`: those that a
    person is to settle; `followed`: by hook, those that held in the last round; `kept`: what was settled of others,
    which wait; `placeless`: by hook, its hunks that the worktree shows nowhere; `move`: what is being checked out in
    the worktree, None if that has ended.
    """

    release: Release
    dropped: Sequence[str] = ()
    taken: Sequence[str] = ()
    left: Sequence[str] = ()
    open: Sequence[str] = ()
    followed: Mapping[str, Followed] = field(default_factory=dict)
    kept: Mapping[str, Kept] = field(default_factory=dict)
    placeless: Mapping[str, Sequence[str]] = field(default_factory=dict)
    move: Move | None = None

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
            return cls(**data | {"release": release} | _read_parts(data))
        except FileNotFoundError:
            raise no_port() from None
        except (ValueError, KeyError, TypeError, AttributeError, LockError) as error:
            hint = "`nox -s port -- --abort`, and begin again."
            raise PortError(f"{path} is damaged: {error}.", hint=hint) from None

    def write(self, folder: Path) -> None:
        """Note the port in a folder, all of it or nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        kept = {
            hook: {name: [to_note(data) for data in pair] for name, pair in files.items()}
            for hook, files in self.kept.items()
        }
        release = dump_lock({self.release.version: self.release})
        data = asdict(dataclasses.replace(self, kept={})) | {"release": release, "kept": kept}
        write_whole(folder / _NOTE, json.dumps(data).encode())


def _read_parts(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a note has of parts that are objects."""
    move = data["move"]
    return {
        "followed": {name: Followed(**words) for name, words in data["followed"].items()},
        "kept": {
            hook: {name: tuple(from_note(noted) for noted in pair) for name, pair in files.items()}
            for hook, files in data["kept"].items()
        },
        "move": move and Move(**move),
    }


def in_progress(folder: Path) -> bool:
    """Tell whether a port is noted in a folder."""
    return (folder / _NOTE).exists()


def no_port() -> PortError:
    """Return the error of a command that goes on with a port where there is none."""
    return PortError("There is no port in progress.", hint="`nox -s port -- VERSION` begins one.")
