"""What a person has settled in the worktree of a port: of each hook the files, committed or not committed yet."""

from __future__ import annotations

from collections.abc import Mapping

from overlay_tools.downstream.worktree import UPSTREAM, Commit, Worktree
from overlay_tools.errors import PortError
from overlay_tools.wheels.overlay_files import compile_all

GO_ON = "then `nox -s port -- --continue`; `nox -s port -- --abort` gives up, and leaves everything as it was"


class Answers:
    """The hooks that are settled, in a worktree that may not have been made yet.

    Parameters: `settle`, whether what is not committed there settles the first hook that is asked for and has no
    commit. `uncommitted` is then its name, until that "".
    """

    def __init__(self, tree: Worktree, *, settle: bool) -> None:
        self.tree = tree
        self.commits = commits_by_hook(tree)
        self.uncommitted = ""
        self._settle = settle and tree.folder.exists()

    def find(self, hook: str) -> dict[str, bytes] | None:
        """Return the files that a hook changes, as they are to be, or None if it is not settled.

        Raises PortError if they are not something that a hook may have; BuildError if one does not compile.
        """
        if commit := self.commits.get(hook):
            return self._check(hook, {name: self.tree.read(commit.sha, name) for name in commit.changed})
        if self._settle:
            self._settle, self.uncommitted = False, hook
            return self._check(hook, self._read_uncommitted())
        return None

    def _read_uncommitted(self) -> dict[str, bytes | None]:
        if marked := self.tree.markers():
            raise PortError(
                *(f"{where}: there are conflict markers." for where in marked), hint=f"Settle them, {GO_ON}."
            )
        return {name: self.tree.read_working(name) for name in self.tree.uncommitted()}

    def _check(self, hook: str, files: Mapping[str, bytes | None]) -> dict[str, bytes]:
        folder, upstream = self.tree.folder, self.tree.names(UPSTREAM)
        if foreign := [folder / name for name in files if name not in upstream]:
            raise PortError(
                *(f"{path} is not one of upstream's files." for path in foreign),
                hint="Files of our own belong in overlay/: move it there.",
            )
        after = {name: data for name, data in files.items() if data is not None}
        if gone := [folder / name for name in files if name not in after]:
            raise PortError(
                *(f"{path} is one of upstream's files, and it is gone." for path in gone), hint=f"Restore it, {GO_ON}."
            )
        if not after:
            hint = f"Change it, {GO_ON}. If the hook is not needed: `nox -s port -- --continue --drop {hook}`."
            raise PortError(f"Hook {hook}: no file in {folder} has an uncommitted change.", hint=hint)
        compile_all({str(folder / name): data for name, data in after.items()})
        return after


def commits_by_hook(tree: Worktree) -> dict[str, Commit]:
    """Return the commits in the worktree, if there is one, by their hooks."""
    commits = tree.commits() if tree.folder.exists() else []
    return {commit.trailers.get("Hook", ""): commit for commit in commits}
