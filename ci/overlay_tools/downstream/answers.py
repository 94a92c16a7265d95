"""What a person has settled in the worktree of a port: of each hook the files, whether or not they are committed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from overlay_tools.archive.mode import is_executable, with_mode
from overlay_tools.downstream.attribution import Attribution, belonging_to
from overlay_tools.downstream.port_worktree import read_contents, read_files
from overlay_tools.downstream.weave import Weave
from overlay_tools.downstream.worktree import OVERLAY, UPSTREAM, Commit, Worktree
from overlay_tools.errors import PortError
from overlay_tools.patches.edited_file import MARKER
from overlay_tools.patches.model import Hook
from overlay_tools.wheels.overlay_files import compile_all

GO_ON = "then `nox -s port -- --continue`; `nox -s port -- --abort` gives up, and leaves everything as it was"
_FIXES = re.compile(r"(?:(?:fixup|squash|amend)! )+")


Files = Mapping[str, bytes | None]  # by path, None for one that is not there


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one hook makes of files: those that it changes, by path, before and after it, without the dropped hooks.

    `renamed`: by the path of each file that has got another name, the one that it had before; `whole`: before and after
    with the hooks that are dropped, None if these change nothing in them; `edited`: a person has changed what the
    commit of the hook had.
    """

    before: Files
    after: Files
    renamed: Mapping[str, str]
    whole: tuple[Files, Files] | None
    edited: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """A commit, or what is not committed: the number of the hook that it belongs to, 0 if its lines say that."""

    number: int
    files: Files


class Answers:
    """The hooks that have a commit in a worktree, read with all that was changed there since.

    Parameters: `hooks`, the series; `opened`, the names of those that a person is to settle, and `dropped` of those
    that the release is not to take.
    Raises PortError with everything that is not settled yet, or cannot be told or taken over.
    """

    def __init__(self, tree: Worktree, hooks: Sequence[Hook], opened: Sequence[str], dropped: Sequence[str]) -> None:
        self.tree, self._hooks = tree, hooks
        self._numbers = {hook.name: number for number, hook in enumerate(hooks, 1)}
        self._dropped = {self._numbers[name] for name in dropped if name in self._numbers}
        self._opened = {self._numbers[name] for name in opened if name in self._numbers} - self._dropped
        self._edited = set[int]()
        self.commits: dict[str, Commit] = {}
        tree.check_not_under_way(PortError, GO_ON)
        self._renamed: dict[str, str] = {}
        steps = self._read_steps(tree.commits())
        self._check_files({name for step in steps for name in step.files})
        self._weaves = self._weave(steps)
        self._touched = {name: weave.numbers() for name, weave in self._weaves.items()}
        self._check_markers()

    def find(self, hook: str) -> Answer | None:
        """Return what a hook makes of files, or None if it has no commit.

        Raises PortError if that is nothing; BuildError if a file does not compile.
        """
        if hook not in self.commits:
            return None
        number, folder = self._numbers[hook], self.tree.folder
        before, after = self._around(number, self._dropped)
        if not after:
            hint = f"Change it, {GO_ON}. If the hook is not needed: `nox -s port -- --continue --drop {hook}`."
            raise PortError(f"Hook {hook}: nothing in {folder} is changed by it.", hint=hint)
        compile_all({str(folder / name): data for name, data in after.items() if data is not None})
        whole = self._around(number, ())
        return Answer(
            before=before,
            after=after,
            renamed={
                new: old
                for new, old in self._renamed.items()
                if after.get(old, b"") is None and after.get(new) is not None and before[new] is None
            },
            whole=whole if whole != (before, after) else None,
            edited=number in self._edited,
        )

    def _around(self, number: int, without: Sequence[int] | set[int]) -> tuple[Files, Files]:
        """Return the files that a hook changes before and after it."""
        before: dict[str, bytes | None] = {}
        after: dict[str, bytes | None] = {}
        for name, weave in self._weaves.items():
            if number not in self._touched[name]:
                continue
            was, now = (weave.content(until, without) for until in (number - 1, number))
            if was != now:
                before[name], after[name] = was, now
        return before, after

    def _read_steps(self, commits: Sequence[Commit]) -> list[_Step]:
        """Return the worktree's commits, and last what is not committed there."""
        numbers: list[int] = []
        faults = []
        for commit in commits:
            number = 0
            name = commit.trailers.get("Hook", "")
            fixed = [held for held, other in self.commits.items() if _fixes(commit, other)]
            if commit.parents != 1:
                faults.append(f"{self._call(commit)} is a merge; rebase instead.")
            elif _FIXES.match(commit.subject):
                if len(fixed) != 1:
                    faults.append(f"{self._call(commit)} fixes {' or '.join(fixed) or 'the commit of no hook'}.")
                number = self._numbers[fixed[0]] if fixed else 0
            elif name in self._numbers:
                number = self._numbers[name]
                if name not in self.commits and number < max([0, *(self._numbers[held] for held in self.commits)]):
                    faults.append(f"{self._call(commit)} comes before others in the series: {name}.")
                self.commits.setdefault(name, commit)
            numbers.append(number)
        if faults:
            hint = f"`git -C {self.tree.folder} rebase -i {OVERLAY}` mends it; the trailer `Hook: NAME` names a hook."
            raise PortError(*faults, hint=hint)
        places = [(commit.sha, name) for commit in commits for name in commit.changed]
        contents = dict(zip(places, read_contents(self.tree, places), strict=True))
        executable = {name for name, data in self._base(commits).items() if data is not None and is_executable(data)}
        steps = []
        for number, commit in zip(numbers, commits, strict=True):
            executable |= {name for name, what in commit.unusual.items() if what == "executable"}
            executable -= {name for name, what in commit.unusual.items() if what == "no longer executable"}
            found = {name: contents[commit.sha, name] for name in commit.changed}
            files = {name: data and with_mode(data, executable=name in executable) for name, data in found.items()}
            steps.append(_Step(number=number, files=files))
        free = {name: self.tree.read_working(name) for name in self.tree.uncommitted()}
        for commit in commits:
            self._renamed |= commit.renamed
        if None in free.values():
            self._renamed |= self.tree.renamed_since_head()
        return [*steps, _Step(number=0, files=free)]

    def _base(self, commits: Sequence[Commit]) -> Files:
        """Return the files that commits change as they were before any of them."""
        return read_files(self.tree, OVERLAY, sorted({name for commit in commits for name in commit.changed}))

    def _call(self, commit: Commit) -> str:
        return f"{self.tree.folder}: commit {commit.sha} ({commit.subject})"

    def _check_files(self, names: Set[str]) -> None:
        """Raise PortError if a file that is changed is not upstream's, nor one of upstream's under another name."""
        upstream = self.tree.names(UPSTREAM).union(self._renamed)
        if foreign := [self.tree.folder / name for name in sorted(names) if name not in upstream]:
            raise PortError(
                *(f"{path} is not one of upstream's files." for path in foreign),
                hint="Files of our own belong in overlay/: move it there.",
            )

    def _weave(self, steps: Sequence[_Step]) -> dict[str, Weave]:
        """Return the files that are changed, each change with the hook that it belongs to."""
        names = sorted({name for step in steps for name in step.files})
        weaves = {name: Weave(data) for name, data in read_files(self.tree, OVERLAY, names).items()}
        unknown = []
        for step in steps:
            for name, data in step.files.items():
                weave = weaves[name]
                if step.number:
                    weave.set_state(step.number, data)
                    if data is not None:
                        weave.edit(data, belonging_to(step.number))
                    continue
                known_as = {name, self._renamed.get(name, name)}
                here = {n for n in self._opened if any(_changes(self._hooks[n - 1], each) for each in known_as)}
                if weave.differs(data):  # in its mode, or in that it is there
                    owners = (
                        here or self._opened or {n for n, hook in enumerate(self._hooks, 1) if _changes(hook, name)}
                    )
                    if len(owners) == 1:
                        weave.set_state(next(iter(owners)), data)
                        self._edited |= owners
                    else:
                        unknown.append(str(self.tree.folder / name))
                attribution = Attribution(open=self._opened, here=here, edited=self._edited)
                if data is not None:
                    weave.edit(data, attribution)
                unknown += [f"{self.tree.folder / name}:{line}" for line in sorted(attribution.lines)]
        held = dict[int, int]()
        for step in steps:
            held[step.number] = held.get(step.number, 0) + 1
        self._edited |= {number for number, times in held.items() if times > 1}
        if unknown:
            raise PortError(
                *(f"{place}: which hook does this change belong to?" for place in unknown), hint=self._how_to_say()
            )
        return weaves

    def _how_to_say(self) -> str:
        """Say how a person tells the hook that a change belongs to."""
        names = [name for name in self.commits if self._numbers[name] in self._opened] or list(self.commits)
        words = ", ".join(f"{self.commits[name].sha} for {name}" for name in names)
        return f"`git -C {self.tree.folder} commit --fixup=COMMIT -- FILE` tells it: {words}; {GO_ON}."

    def _check_markers(self) -> None:
        """Raise PortError if there are conflict markers of hooks that are not dropped."""
        faults = []
        for name, weave in self._weaves.items():
            where = {id(line): f":{number}" for number, line in enumerate(weave.visible(), 1)}
            for number in sorted(self._opened | self._edited - self._dropped):
                hook = self._hooks[number - 1]
                for line in weave.visible(number):
                    if line.born == number and MARKER.match(line.text) and not _adds(hook, line.text):
                        place = f"{self.tree.folder / name}{where.get(id(line), '')}"
                        faults.append(f"{place}: a conflict marker of hook {hook.name} is left.")
        if faults:
            raise PortError(*faults, hint=f"Settle them, {GO_ON}.")


def _changes(hook: Hook, name: str) -> bool:
    """Tell whether a variant of a hook changes a file."""
    return any(name in patch.names for patch in hook.variants)


def _adds(hook: Hook, text: str) -> bool:
    """Tell whether a variant of a hook adds a line."""
    lines = (line for patch in hook.variants for file in patch.files for hunk in file for line in hunk)
    return any(line.is_added and line.value.rstrip("\n") == text for line in lines)


def _fixes(commit: Commit, other: Commit) -> bool:
    """Tell whether a commit is to be squashed into another, as `git rebase --autosquash` would."""
    wanted = _FIXES.sub("", commit.subject, count=1)
    return bool(wanted) and (other.subject.startswith(wanted) or other.sha.startswith(wanted))
