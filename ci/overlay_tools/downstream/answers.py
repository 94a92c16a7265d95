"""What a person has settled in the worktree of a port: of each hook the files, committed or not committed yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from overlay_tools.downstream.worktree import UPSTREAM, Commit, Worktree
from overlay_tools.errors import PortError
from overlay_tools.wheels.overlay_files import compile_all

GO_ON = "then `nox -s port -- --continue`; `nox -s port -- --abort` gives up, and leaves everything as it was"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The files that a hook changes, as they are to be, None for those that are gone.

    `renamed`: by the path of each file that has got another name, the one that it had before.
    """

    files: Mapping[str, bytes | None]
    renamed: Mapping[str, str]


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

    def find(self, hook: str) -> Answer | None:
        """Return what a hook is to do, or None if it is not settled.

        Raises PortError if they are not something that a hook may have; BuildError if one does not compile.
        """
        if commit := self.commits.get(hook):
            files = {name: self.tree.read(commit.sha, name) for name in commit.changed}
            return self._check(hook, Answer(files=files, renamed=commit.renamed))
        if self._settle:
            self._settle, self.uncommitted = False, hook
            return self._check(hook, self._read_uncommitted())
        return None

    def _read_uncommitted(self) -> Answer:
        if marked := self.tree.markers():
            raise PortError(
                *(f"{where}: there are conflict markers." for where in marked), hint=f"Settle them, {GO_ON}."
            )
        files = {name: self.tree.read_working(name) for name in self.tree.uncommitted()}
        return Answer(files=files, renamed=self.tree.renamed_since_head() if None in files.values() else {})

    def _check(self, hook: str, answer: Answer) -> Answer:
        folder, files = self.tree.folder, answer.files
        renamed = [answer.renamed, *(commit.renamed for commit in self.commits.values())]
        upstream = self.tree.names(UPSTREAM).union(*renamed)
        if foreign := [folder / name for name in files if name not in upstream]:
            raise PortError(
                *(f"{path} is not one of upstream's files." for path in foreign),
                hint="Files of our own belong in overlay/: move it there.",
            )
        if not files:
            hint = f"Change it, {GO_ON}. If the hook is not needed: `nox -s port -- --continue --drop {hook}`."
            raise PortError(f"Hook {hook}: no file in {folder} has an uncommitted change.", hint=hint)
        compile_all({str(folder / name): data for name, data in files.items()})
        return answer


def commits_by_hook(tree: Worktree) -> dict[str, Commit]:
    """Return the commits in the worktree, if there is one, by their hooks."""
    commits = tree.commits() if tree.folder.exists() else []
    return {commit.trailers.get("Hook", ""): commit for commit in commits}
