"""The worktree of a port: in each round the commits of the hooks are written anew, and what a person did is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from overlay_tools.archive.mode import is_executable, with_mode
from overlay_tools.downstream.transaction import write_files
from overlay_tools.downstream.worktree import OVERLAY, Worktree, message_of
from overlay_tools.patches.model import EXECUTABLE, ORDINARY, Patch
from overlay_tools.subprocesses import git_bytes
from overlay_tools.user_files import remove_parts

_NEXT = "refs/port/next"  # the commits that are to be checked out; no branch, so that no one takes it for his own


@dataclass(frozen=True, kw_only=True, slots=True)
class HookCommit:
    """A hook in the worktree: a variant, whose header is the message, and by path what it makes of files."""

    patch: Patch
    files: Mapping[str, bytes | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """Commits that are to be checked out, and the hashes of the files that this changes, as they were until then."""

    commit: str
    files: Mapping[str, str]


def prepare(tree: Worktree, commits: Sequence[HookCommit]) -> Move:
    """Write commits after the overlay's, one a hook, and change nothing that is checked out."""
    parts, parent = [], f"refs/tags/{OVERLAY}^0"
    for number, commit in enumerate(commits, 1):
        message = message_of(commit.patch)
        parts += [f"commit {_NEXT}\nmark :{number}\n", "committer sglang-overlay <sglang-overlay@localhost> now\n"]
        parts += [_data(message.encode("utf-8", "surrogateescape")), f"from {parent}\n"]
        for name, data in commit.files.items():
            if data is None:
                parts.append(f"D {name}\n")
            else:
                parts += [f"M {EXECUTABLE if is_executable(data) else ORDINARY} inline {name}\n", _data(data)]
        parent = f":{number}"
    parts.append(f"reset {_NEXT}\nfrom {parent}\n\ndone\n")
    tree.git("fast-import", "--quiet", "--force", "--done", "--date-format=now", stdin="".join(parts))
    commit_id = tree.git("rev-parse", _NEXT).strip()
    changed = {*_changed(tree, "HEAD", commit_id), *_known(tree, tree.uncommitted())}
    return Move(commit=commit_id, files={name: _digest(tree.read_working(name)) for name in sorted(changed)})


def read_files(tree: Worktree, commit: str, names: Collection[str]) -> dict[str, bytes | None]:
    """Return files of one commit, as `Worktree.read` does one; with two calls of git for all of them."""
    entries = tree.git("ls-tree", "-r", "-z", commit).split("\0")
    modes = {name: words.split()[0] for words, _, name in (entry.partition("\t") for entry in entries if entry)}
    contents = read_contents(tree, [(commit, name) for name in names])
    return {
        name: data if data is None else with_mode(data, executable=modes[name] == EXECUTABLE)
        for name, data in zip(names, contents, strict=True)
    }


def read_contents(tree: Worktree, wanted: Sequence[tuple[str, str]]) -> list[bytes | None]:
    """Return the content of files, each of a commit and a path, None for one that is not there."""
    asked = "".join(f"{commit}:{name}\n" for commit, name in wanted).encode("utf-8", "surrogateescape")
    told = git_bytes(["cat-file", "--batch"], cwd=tree.folder, stdin=asked).stdout
    found: list[bytes | None] = []
    at = 0
    for _ in wanted:
        end = told.index(b"\n", at)
        *_, kind, size = told[at:end].split(b" ")
        if kind == b"blob":
            found.append(told[end + 1 : end + 1 + int(size)])
            at = end + 2 + int(size)
        else:
            found.append(None)
            at = end + 1
    return found


def check_out(tree: Worktree, move: Move) -> None:
    """Check the commits out; a file that a person has changed since they were prepared stays as it is.

    If this is killed, the next call ends it.
    """
    new = read_files(tree, move.commit, move.files)
    still = {name: data for name, data in new.items() if _digest(tree.read_working(name)) == move.files[name]}
    for name in move.files:
        remove_parts(tree.folder / name)
    write_files(tree.folder, still)
    for name, data in still.items():
        if data is not None:
            (tree.folder / name).chmod(0o755 if is_executable(data) else 0o644)
    (tree.folder / ".git" / "index.lock").unlink(missing_ok=True)  # of a git that was killed
    tree.git("update-ref", "HEAD", move.commit)
    tree.git("read-tree", move.commit)


def _changed(tree: Worktree, before: str, after: str) -> list[str]:
    names = tree.git("diff-tree", "-r", "--no-renames", "--name-only", "-z", before, after).split("\0")
    return [name for name in names if name]


def _known(tree: Worktree, names: Sequence[str]) -> list[str]:
    """Return those of some files that git has: others are the person's own."""
    known = tree.names(OVERLAY)
    return [name for name in names if name in known]


def _digest(data: bytes | None) -> str:
    return "" if data is None else hashlib.sha256(data).hexdigest()


def _data(data: bytes) -> str:
    return f"data {len(data)}\n{data.decode('utf-8', 'surrogateescape')}\n"
