"""What a worktree notes of its last export: the commit that patches/ and overlay/ agree with, and the hooks then."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from overlay_tools.downstream.transaction import write_files
from overlay_tools.downstream.worktree import Worktree, message_of
from overlay_tools.patches.model import Patch

_NOTE = ".git/sglang-overlay.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedState:
    """`exported`: the commit; `patches`: by hook, the hash of what its variant said and did."""

    exported: str
    patches: Mapping[str, str]

    @classmethod
    def read(cls, tree: Worktree) -> ExportedState:
        """Return what a worktree has noted; where the note is damaged, a state that nothing agrees with."""
        try:
            return cls(**json.loads((tree.folder / _NOTE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls(exported="", patches={})

    @classmethod
    def note(cls, tree: Worktree, patches: Sequence[Patch]) -> None:
        """Note that patches/ and overlay/ agree with HEAD, and which patches the release takes."""
        state = cls(exported=tree.head(), patches=digests(patches))
        write_files(tree.folder, {_NOTE: json.dumps(asdict(state)).encode()})


def digests(patches: Sequence[Patch]) -> dict[str, str]:
    """Return, by hook, the hash of what a patch says and does, whichever releases it applies to."""
    return {patch.hook: hashlib.sha256((message_of(patch) + patch.diff).encode()).hexdigest() for patch in patches}
