"""The Python files of several releases in one git repository, and what the tools of others do there."""

from __future__ import annotations

import difflib
import itertools
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from overlay_tools.patches.model import lines_with_ends, split_lines
from overlay_tools.subprocesses import git, run
from overlay_tools.upstream.source_tree import SourceTree

from bench.port.insertions import Answer, Insertion, Neighbours


class ReleaseRepository:
    """Each release, oldest first, as a commit with a tag r0, r1, ...; the newest is checked out."""

    def __init__(self, folder: Path, sources: Sequence[SourceTree]) -> None:
        self.folder, self.sources = folder, sources
        self._known_diffs: dict[str, list[str]] = {}
        folder.mkdir()
        self._git("init", "--quiet")
        for number, release in enumerate(sources):
            shutil.rmtree(folder / "sglang", ignore_errors=True)
            # An insertion is in a file of the oldest release; any file of the newest can take it.
            newest = number == len(sources) - 1
            for name in release.names if newest else set(release.names) & set(sources[0].names):
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(release.read(name) or b"")
            self._git("add", "--all")
            self._git("-c", "user.name=x", "-c", "user.email=x", "commit", "--quiet", "-m", release.version)
            self._git("tag", f"r{number}")

    def changed_lines(self) -> dict[str, list[int]]:
        """Return the lines of the oldest release near which the newest one differs, by file."""
        words = ("diff", "-U0", "--no-renames", "--histogram", "r0", f"r{len(self.sources) - 1}", "--", "*.py")
        found: dict[str, list[int]] = {}
        names, name = set(self.sources[0].names), ""
        for line in self._git(*words).splitlines():
            if line.startswith("--- "):
                name = line[6:]
            elif (head := re.match(r"@@ -(\d+)(?:,(\d+))? ", line)) and name in names:
                start, size = int(head[1]), int(head[2] or 1)
                found.setdefault(name, []).extend(range(start, start + max(size, 1)))
        return found

    def follow(self, insertion: Insertion) -> list[Neighbours]:
        """Follow the lines around an insertion into each release, the oldest one first."""
        before: int | None = insertion.after
        after: int | None = insertion.after + 1
        found = [Neighbours(before=before, after=after)]
        for diff in self._diffs(insertion.file):
            before, after = _follow_line(diff, before), _follow_line(diff, after)
            found.append(Neighbours(before=before, after=after))
        return found

    def _diffs(self, file: str) -> list[str]:
        """Return what was done to a file from each release to the next."""
        if file not in self._known_diffs:
            tags = [f"r{number}" for number in range(len(self.sources))]
            words = ("diff", "-U0", "--no-renames", "--patience")
            self._known_diffs[file] = [self._git(*words, *pair, "--", file) for pair in itertools.pairwise(tags)]
        return self._known_diffs[file]

    def diff(self, insertion: Insertion) -> str:
        """Return an insertion as a diff, with the blobs that `git apply -3` needs in the repository."""
        name = insertion.file
        old = lines_with_ends(split_lines(self.sources[0].read(name) or b""))
        new = [*old[: insertion.after], f"{insertion.line}\n", *old[insertion.after :]]
        blobs = [self._git("hash-object", "-w", "--stdin", stdin="".join(lines)).strip() for lines in (old, new)]
        lines = difflib.unified_diff(old, new, f"a/{name}", f"b/{name}", n=3)
        body = "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
        return f"diff --git a/{name} b/{name}\nindex {blobs[0]}..{blobs[1]} 100644\n{body}"

    def git_apply(self, insertion: Insertion, diff: str) -> Answer:
        """Apply with `git apply`."""
        path = self._restore(insertion.file)
        words = ["apply", "--whitespace=nowarn", "-"]
        if path is None or git(words, cwd=self.folder, stdin=diff).returncode != 0:
            return None
        return insertion.file, path.read_bytes()

    def git_apply_three_way(self, insertion: Insertion, diff: str) -> Answer:
        """Apply with `git apply -3`, which gives up where it leaves conflict markers."""
        self._git("reset", "--quiet", "--hard")
        words = ["apply", "-3", "--whitespace=nowarn", "-"]
        if git(words, cwd=self.folder, stdin=diff).returncode != 0:
            return None
        return insertion.file, (self.folder / insertion.file).read_bytes()

    def gnu_patch(self, insertion: Insertion, diff: str) -> Answer:
        """Apply with GNU patch, with the fuzz that it allows by default."""
        path = self._restore(insertion.file)
        if path is None:
            return None
        words = ["patch", "--quiet", "--batch", "--no-backup-if-mismatch", "-p1", "-r", "-"]
        if run(words, cwd=self.folder, stdin=diff, check=False).returncode != 0:
            return None
        return insertion.file, path.read_bytes()

    def _restore(self, file: str) -> Path | None:
        data = self.sources[-1].read(file)
        if data is None:
            return None
        path = self.folder / file
        path.write_bytes(data)
        return path

    def _git(self, *words: str, stdin: str | None = None) -> str:
        done = git(words, cwd=self.folder, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout


def _follow_line(diff: str, line: int | None) -> int | None:
    """Return the number that a line has after a diff without context, or None if the diff changes it."""
    if line is None or re.search(r"^deleted file", diff, re.MULTILINE):
        return None
    shift = 0
    for head in re.finditer(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", diff, re.MULTILINE):
        start, size, _, more = (int(number) if number else 1 for number in head.groups())
        if size and start <= line < start + size:
            return None
        if (start if size else start + 1) <= line:
            shift += more - size
    return line + shift
