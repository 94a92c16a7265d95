"""A git repository of one release: upstream's files, then the overlay's, then one commit a hook."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from overlay_tools.archive.mode import is_executable, read_with_mode, with_mode
from overlay_tools.archive.reader import WheelReader
from overlay_tools.errors import OverlayError, ToolError, WheelError, WorktreeError
from overlay_tools.patches.edited_file import MARKER
from overlay_tools.patches.model import EXECUTABLE, ORDINARY, Patch, split_lines
from overlay_tools.subprocesses import git, git_bytes
from overlay_tools.user_files import naming

UPSTREAM, OVERLAY = "upstream", "overlay"  # the tags of the first two commits
_TRAILERS = ("Hook", "Forwarded", "Remove-When")
_CALLED = {name.lower(): name for name in _TRAILERS}
_MESSAGE = "%P%x00%B%x00%(trailers)%x00%(trailers:only,unfold)"
_WHO = ("-c", "user.name=sglang-overlay", "-c", "user.email=sglang-overlay@localhost")
_ADD_ALL = ("add", "--all", "--force", "--", ".", ":(exclude,glob)**/__pycache__/**")  # whatever a .gitignore says
# Files are as upstream has them and go back as they are. This goes before what a .gitattributes of upstream's or the
# user's own say, whoever calls git: none of them has a program run on the files.
_ATTRIBUTES = "* -text -ident -working-tree-encoding !eol !filter !diff !merge !conflict-marker-size !whitespace\n"
# What git keeps in .git while a command of several steps is under way: the first that is there counts.
_BEGUN = {
    "rebase-merge": "rebase",
    "rebase-apply/applying": "am",
    "rebase-apply": "rebase",
    "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "sequencer": "cherry-pick",  # or, as its first line says, a revert: between two commits of several
}
_LINK, _SUBMODULE = "120000", "160000"  # git's modes of what is not a file


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """A commit after the overlay's.

    `changed`: what was done to files (git's A, M, D, T), by path; `unusual`: by path, what is now more or other than an
    ordinary file, as the overlay's are; `renamed`: by the path of a file that is new, that of a file which is gone, of
    which git says that it has become this one.
    """

    sha: str
    parents: int
    subject: str
    body: str
    trailers: Mapping[str, str]
    changed: Mapping[str, str]
    unusual: Mapping[str, str]
    renamed: Mapping[str, str]


class Worktree:
    """A worktree at `folder`, made by `create`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path, wheel: Path, overlay: Mapping[str, bytes]) -> Worktree:
        """Unpack a base wheel and put the overlay's files in place, each a commit; whole, or not at all.

        Raises ToolError if git fails; WheelError if the wheel is refused or damaged, or the disk takes two of its files
        for one.
        """
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            cls(part)._fill(wheel, overlay)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return cls(folder)

    def _fill(self, wheel: Path, overlay: Mapping[str, bytes]) -> None:
        self._unpack(wheel)
        self.git("init", "--quiet", "--initial-branch=main")
        # Loose objects of a release are read once or never: packing them tight would take most of the time.
        self.git("config", "core.compression", "0")
        settings = self.folder / ".git" / "info"
        settings.mkdir(exist_ok=True)
        (settings / "exclude").write_text("__pycache__/\n", encoding="utf-8")
        (settings / "attributes").write_text(_ATTRIBUTES, encoding="utf-8")
        self._commit("Upstream's files", UPSTREAM)
        self.write(overlay)
        self._commit("The overlay's files\n\nChange them and commit: `nox -s export` writes them back.", OVERLAY)

    def _unpack(self, wheel: Path) -> None:
        with WheelReader(wheel) as base:
            for name in base.members:
                if name.endswith("/"):
                    continue
                if (self.folder / name).exists():  # the disk ignores case, or writes letters in another way
                    raise WheelError(
                        f"{wheel}: {self.folder} takes {name} for another file of the wheel.",
                        hint="Use a file system that tells apart what Linux does.",
                    )
                self.write({name: base.read(name)})

    def git(self, *words: str | Path, stdin: str | None = None) -> str:
        """Run git here and return what it prints.

        Raises ToolError if it fails.
        """
        done = git(words, cwd=self.folder, stdin=stdin)
        if done.returncode != 0:
            raise ToolError(
                f"{self.folder}: git {' '.join(map(str, words))} failed:\n{done.stderr.strip()}",
                hint="Mend that with git there; if nothing in this folder is needed, remove it, and begin anew.",
            )
        return done.stdout

    def head(self) -> str:
        """Return the commit that is checked out."""
        return self.git("rev-parse", "HEAD").strip()

    def read_working(self, name: str) -> bytes | None:
        """Return a file as it lies in the worktree, or None if it is not there."""
        path = self.folder / name
        return read_with_mode(path) if path.is_file() else None

    def write(self, files: Mapping[str, bytes | None]) -> None:
        """Write files by path, None to remove one."""
        for name, data in files.items():
            path = self.folder / name
            if data is None:
                path.unlink(missing_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                with naming(path):
                    path.write_bytes(data)
                path.chmod(0o755 if is_executable(data) else 0o644)

    def propose(self, files: Mapping[str, bytes | None]) -> None:
        """Write files that are not to be committed yet; `git diff` shows the new ones too, `git reset` removes them."""
        self.write(files)
        new = [name for name, data in files.items() if data is not None]
        self.git("--literal-pathspecs", "add", "--intent-to-add", "--force", "--", *new)

    def commit_hook(self, patch: Patch, files: Mapping[str, bytes | None]) -> None:
        """Write the files that a hook makes and commit them, its header as the message."""
        self.commit_files(files, message_of(patch))

    def commit_files(self, files: Mapping[str, bytes | None], message: str) -> None:
        """Write files by path, None to remove one, and commit them."""
        self.write(files)
        self.git("update-index", "--add", "--remove", "-z", "--stdin", stdin="".join(f"{name}\0" for name in files))
        self.git(*_WHO, "commit", "--quiet", "--file=-", stdin=message)

    def _commit(self, message: str, tag: str) -> None:
        self.git(*_ADD_ALL)
        self.git(*_WHO, "commit", "--quiet", "--allow-empty", "--file=-", stdin=message)
        self.git("tag", "--force", tag)

    def check_not_under_way(self, kind: type[OverlayError], then: str) -> None:
        """Raise an error of a kind if a rebase or the like has stopped midway here; `then` says what comes after it."""
        if command := next((_BEGUN[name] for name in _BEGUN if (self.folder / ".git" / name).exists()), ""):
            todo = self.folder / ".git" / "sequencer" / "todo"
            if todo.is_file() and todo.read_bytes().startswith(b"revert"):
                command = "revert"
            raise kind(
                f"{self.folder}: a git {command} is under way.",
                hint=f"`git -C {self.folder} {command} --continue` ends it; {then}.",
            )

    def uncommitted(self) -> list[str]:
        """Return the paths of files with changes that are not committed, new ones too.

        No .gitignore of upstream's hides one, as it does from a person's git; what is in .git/info/exclude does.
        """
        words = ("status", "--porcelain", "-z", "--no-renames", "--untracked-files=no")
        changed = [entry[3:] for entry in self.git(*words).split("\0") if entry]
        exclude = self.folder / ".git" / "info" / "exclude"
        ignored = [f"--exclude-from={exclude}"] if exclude.is_file() else []
        return changed + [name for name in self.git("ls-files", "-z", "--others", *ignored).split("\0") if name]

    def state(self) -> tuple[str, list[str]]:
        """Return what is otherwise once someone has worked here: HEAD, and what is not committed."""
        return self.head(), self.uncommitted()

    def kept_aside(self, commit: str) -> list[str]:
        """Return what a person keeps here beside HEAD and the files that git shows.

        These are stashes, branches and tags with commits that are not among those of one, but HEAD's own, and files,
        but for Python's caches, that are named in .git/info/exclude.

        Parameters: `commit`, "" if none counts.
        """
        stashes = [f"stash {line}" for line in self.git("stash", "list", "--format=%gd (%gs)").splitlines()]
        merged = [f"--no-merged={commit}"] if commit else []
        refs = self.git("for-each-ref", "--format=%(HEAD)%(refname)", *merged, "refs/heads", "refs/tags").splitlines()
        names = [ref[1:].split("/", 2)[1:] for ref in refs if ref[0] != "*"]
        own = (UPSTREAM, OVERLAY)
        branches = [f"branch {name}" for kind, name in names if kind == "heads"]
        tags = [f"tag {name}" for kind, name in names if kind == "tags" and name not in own]
        return stashes + branches + tags + [f"file {name}" for name in self._excluded()]

    def _excluded(self) -> list[str]:
        exclude = self.folder / ".git" / "info" / "exclude"
        if not exclude.is_file():
            return []
        names = self.git("ls-files", "-z", "--others", "--ignored", f"--exclude-from={exclude}").split("\0")
        return [name for name in names if name and "__pycache__" not in PurePosixPath(name).parts]

    def commits(self) -> list[Commit]:
        """Return the commits after the overlay's, oldest first.

        Raises WorktreeError if the tags of the first two commits are gone or no longer among HEAD's ancestors.
        """
        if git(["merge-base", "--is-ancestor", OVERLAY, "HEAD"], cwd=self.folder).returncode != 0:
            raise WorktreeError(
                f"{self.folder}: the commit {OVERLAY!r} is not among those of HEAD.",
                hint=f"`git -C {self.folder} rebase {OVERLAY}` puts your commits after it.",
            )
        found = []
        for sha in self.git("rev-list", "--reverse", "--topo-order", f"{OVERLAY}..HEAD").split():
            told = self.git("show", "--no-patch", f"--format={_MESSAGE}", sha)
            parents, message, block, trailers = told.split("\0")
            subject, body = _split_message(message, block)
            changes = self._changes(f"{sha}~", sha)
            letters = [status for _, _, status in changes.values()]
            found.append(
                Commit(
                    sha=sha[:12],
                    parents=len(parents.split()),
                    subject=subject,
                    body=body,
                    trailers=read_trailers(trailers),
                    changed={name: status for name, (_, _, status) in changes.items()},
                    unusual=_unusual(changes),
                    renamed=self._renamed(f"{sha}~", sha) if {"A", "D"} <= {*letters} else {},
                )
            )
        return found

    def read(self, commit: str, name: str) -> bytes | None:
        """Return a file as it is in a commit, or None if the commit has none."""
        entry = self.git("--literal-pathspecs", "ls-tree", "-z", commit, "--", name).partition("\t")[0].split()
        if entry[1:2] != ["blob"]:
            return None
        done = git_bytes(["cat-file", "blob", entry[2]], cwd=self.folder)
        return with_mode(done.stdout, executable=entry[0] == EXECUTABLE)

    def changed_since(self, commit: str) -> set[str]:
        """Return the paths of the files in which HEAD differs from a commit."""
        return set(self._changes(commit, "HEAD"))

    def unusual_since(self, commit: str) -> Mapping[str, str]:
        """Return, by path, what HEAD has made something other than an ordinary file since a commit."""
        return _unusual(self._changes(commit, "HEAD"))

    def _changes(self, before: str, after: str) -> dict[str, tuple[str, str, str]]:
        """Return the paths of the files that differ, with git's mode before and after, and its letter."""
        fields = self.git("diff-tree", "-r", "--no-renames", "--raw", "-z", before, after).split("\0")
        rows = ((name, entry.lstrip(":").split()) for entry, name in zip(fields[0::2], fields[1::2], strict=False))
        return {name: (old, new, status) for name, (old, new, _, _, status) in rows}

    def renamed_since_head(self) -> dict[str, str]:
        """Return the paths in HEAD of the files that have another name here, not committed yet, by the new one."""
        self.git(*_ADD_ALL)
        return self._renamed("HEAD", self.git("write-tree").strip())

    def _renamed(self, before: str, after: str) -> dict[str, str]:
        words = ("-r", "--find-renames", "--diff-filter=R", "--name-status", "-z", before, after)
        fields = self.git("diff-tree", *words).split("\0")
        return {new: old for old, new in zip(fields[1::3], fields[2::3], strict=False)}

    def names(self, commit: str) -> set[str]:
        """Return the paths of all files in a commit."""
        return set(self.git("ls-tree", "-r", "-z", "--name-only", commit).split("\0")) - {""}


def find_markers(content: bytes, known: bytes | None) -> list[int]:
    """Return the numbers of the lines that are conflict markers, and not among those that are known."""
    before = split_lines(known or b"")
    return [n for n, line in enumerate(split_lines(content), 1) if MARKER.match(line) and line not in before]


def _unusual(changes: Mapping[str, tuple[str, str, str]]) -> dict[str, str]:
    found = {}
    for name, (old, new, _) in changes.items():
        if new in (_LINK, _SUBMODULE):
            found[name] = "a symbolic link" if new == _LINK else "a submodule"
        elif new == EXECUTABLE and old != new:
            found[name] = "executable"
        elif old == EXECUTABLE and new == ORDINARY:
            found[name] = "no longer executable"
    return found


def message_of(patch: Patch) -> str:
    """Return a patch's header as a commit message; `Applies` is left out, it is found by trying."""
    return format_message(patch.header, patch.hook)


def format_message(header: Mapping[str, str], hook: str) -> str:
    """Return the header of a hook as a commit message."""
    trailers = "".join(f"{name}: {header.get(name, hook)}\n" for name in _TRAILERS)
    return f"{header['Subject']}\n\n{header['Why']}\n\n{trailers}"


def _split_message(message: str, block: str) -> tuple[str, str]:
    """Return a commit message's subject, and its body without the block of trailers, which ends it."""
    subject, _, rest = message.strip().removesuffix(block.strip()).strip().partition("\n")
    return subject, " ".join(rest.split())


def read_trailers(lines: str) -> dict[str, str]:
    """Return trailers by name, which counts whether or not it is capitalised, from what git prints of them."""
    trailers = (line.partition(":") for line in lines.strip().splitlines())
    return {_CALLED.get(name.lower(), name): value.strip() for name, _, value in trailers}
