"""The hooks among a worktree's commits: each a commit that changes files of upstream's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from overlay_tools.downstream.worktree import OVERLAY, UPSTREAM, Commit, Worktree, find_markers
from overlay_tools.errors import WorktreeError
from overlay_tools.patches.model import FORWARDED, HOOK_NAME, README, Hook, split_lines

_LONGEST = 100  # letters of a hook's name: it is that of a folder, of which a disk takes 255
ASKED = ("Why", "Forwarded", "Remove-When")
Ask = Callable[[str, str], str]  # what a hook is called, and which field of its header is wanted


@dataclass(frozen=True, kw_only=True, slots=True)
class CommittedHook:
    """A hook as a commit or a foreign patch has it: its header, and the files it changes, before and after.

    `before` and `after`: None for a file that is not there; `renamed`: by the path of each file that is only there
    afterwards, the one that it had before.
    """

    name: str
    header: Mapping[str, str]
    before: Mapping[str, bytes | None]
    after: Mapping[str, bytes | None]
    renamed: Mapping[str, str] = field(default_factory=dict)


def read_committed_hooks(
    tree: Worktree, hooks: Sequence[Hook], version: str, replaces: Set[str], ask: Ask | None
) -> dict[str, CommittedHook]:
    """Return the hooks among a worktree's commits by name, in order.

    Parameters: `hooks`, the series; `version`, the release that the worktree is of; `replaces`, the upstream files in
    whose place the overlay has its own; `ask` asks a person for a field of a new hook's header, None if no one is there
    to ask.
    Raises WorktreeError with every fault of any commit.
    """
    reader = _CommitReader(tree, hooks, version, tree.names(UPSTREAM) - replaces, ask)
    for commit in tree.commits():
        reader.read(commit)
    reader.compare_with_series()
    if reader.faults:
        settle = f"Settle what stands between the markers: `git -C {tree.folder} rebase -i {OVERLAY}`, and amend there."
        order = "To remove a hook, or to change the order, edit patches/."
        raise WorktreeError(*reader.faults, hint=settle if reader.marked else order)
    return reader.found


class _CommitReader:
    """Reads commits, one after the other: `found` are the hooks among them, `faults` what is wrong with any."""

    def __init__(
        self, tree: Worktree, hooks: Sequence[Hook], version: str, upstream: Set[str], ask: Ask | None
    ) -> None:
        self.tree, self.hooks, self.version, self.ask = tree, hooks, version, ask
        self.upstream = set(upstream)  # and what hooks have renamed files of upstream's to
        self.found: dict[str, CommittedHook] = {}
        self.faults: list[str] = []
        self.marked = False  # whether any has conflict markers

    def read(self, commit: Commit) -> None:
        """Read a commit, which may be a hook's or change the overlay alone."""
        folder = self.tree.folder
        if commit.parents != 1:
            self._add_fault(commit, "is a merge; rebase instead.")
        elif re.match(r"(?:fixup|squash|amend)! ", commit.subject):
            self._add_fault(commit, f"is not squashed: `git -C {folder} rebase -i --autosquash {OVERLAY}` does it.")
        else:
            renamed = {new: old for new, old in commit.renamed.items() if old in self.upstream}
            self.upstream |= renamed.keys()
            names = sorted(name for name in commit.changed if name in self.upstream)
            for name in names:
                if commit.unusual.get(name, "").startswith("a "):  # a link or a submodule
                    self._add_fault(commit, f"makes {name}, which is upstream's, {commit.unusual[name]}.")
                elif commit.changed[name] == "A" and name not in renamed:
                    self._add_fault(commit, f"adds {name}, which a hook before it has taken away: change that hook.")
                elif name in renamed and not name.startswith("sglang/"):
                    self._add_fault(commit, f"renames {renamed[name]}, which is upstream's, to outside sglang/.")
            if not commit.changed:
                self._add_fault(commit, "changes no line of any file; drop it.")
            elif names:
                before = {name: self.tree.read(f"{commit.sha}~", name) for name in names}
                after = {name: self.tree.read(commit.sha, name) for name in names}
                self._read_hook(commit, before, after, renamed)
            for name in sorted(commit.changed):
                self._refuse_markers(commit, name)

    def compare_with_series(self) -> None:
        """See that every hook of the release has its commit still, and that they are in the series' order."""
        folder = self.tree.folder
        for hook in self.hooks:
            if hook.variant(self.version) and hook.name not in self.found:
                self.faults.append(f"{folder}: hook {hook.name} no longer has a commit.")
        in_order = [hook.name for hook in self.hooks if hook.name in self.found]
        if not self.faults and list(self.found)[: len(in_order)] != in_order:
            self.faults.append(
                f"{folder}: its hooks are not in the series' order, new ones last: {', '.join(in_order)}."
            )

    def _read_hook(
        self,
        commit: Commit,
        before: Mapping[str, bytes | None],
        after: Mapping[str, bytes | None],
        renamed: Mapping[str, str],
    ) -> None:
        name = commit.trailers.get("Hook") or re.sub(r"[^a-z0-9]+", "-", commit.subject.lower()).strip("-")
        if not HOOK_NAME.fullmatch(name) or name in ("series", README) or len(name) > _LONGEST:
            self.faults.append(
                f"{self._call(commit)}: {name!r} is not a name for a hook; give its message a trailer `Hook: NAME`."
            )
        elif name in self.found:
            self._add_fault(commit, f"is a second commit of hook {name}: `git rebase -i` makes them one.")
        else:
            header = self._header(commit, name)
            if lacking := [field for field in ASKED if not header[field]]:
                self._add_fault(
                    commit,
                    f"would be the new hook {name}, and its message has no {', '.join(lacking)}: `git commit --amend`"
                    " it, Why as the body, the others as trailers; or `git rebase -i` squashes it into its hook.",
                )
            elif not FORWARDED.match(header["Forwarded"]):
                self._add_fault(
                    commit,
                    f"says Forwarded: {header['Forwarded']}; it must be upstream's address of it, or `no: ` and a"
                    " reason: `git commit --amend` it.",
                )
            self.found[name] = CommittedHook(name=name, header=header, before=before, after=after, renamed=renamed)

    def _header(self, commit: Commit, name: str) -> dict[str, str]:
        """Return what a commit's message says, completed from the hook as it was, or else by asking."""
        header = {"Subject": commit.subject, "Why": commit.body, **commit.trailers}
        hook = next((hook for hook in self.hooks if hook.name == name), None)
        old = (hook.variant(self.version) or hook.variants[-1]) if hook else None
        for asked in ASKED:
            if not header.get(asked) and old is not None:
                header[asked] = old.header[asked]
            elif not header.get(asked):
                header[asked] = self.ask(name, asked) if self.ask else ""
        return header

    def _refuse_markers(self, commit: Commit, name: str) -> None:
        """Note each line of a file that is a conflict marker, and is not upstream's or the overlay's."""
        content = self.tree.read(commit.sha, name) or b""
        numbers, lines = (
            find_markers(content, self.tree.read(OVERLAY, commit.renamed.get(name, name))),
            split_lines(content),
        )
        if all(lines[number - 1].startswith("=") for number in numbers):
            return  # a title of a text can be underlined like that
        hook = f", to be settled for hook {commit.trailers['Hook']}" if "Hook" in commit.trailers else ""
        if numbers:
            self.marked = True
            self._add_fault(commit, f"has conflict markers at {name}:{', '.join(map(str, numbers))}{hook}.")

    def _add_fault(self, commit: Commit, fault: str) -> None:
        self.faults.append(f"{self._call(commit)} {fault}")

    def _call(self, commit: Commit) -> str:
        return f"{self.tree.folder}: commit {commit.sha} ({commit.subject})"
