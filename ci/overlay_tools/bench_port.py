"""Measure how hunks are carried to another release: made-up insertions, and the series itself, beside other tools.

An insertion is one line between two statements of a function, near lines that upstream changed. Where it belongs in the
other release is found another way than by any tool that is measured: both statements are followed through every locked
release between the two, diff by diff.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from overlay_tools import console
from overlay_tools.downstream.port import Port
from overlay_tools.downstream.queue import PatchQueue
from overlay_tools.downstream.transaction import write_patches
from overlay_tools.errors import PortError, ToolError
from overlay_tools.patches.code_spans import scope_of
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.patch_file import load_patch
from overlay_tools.patches.relocate import relocate
from overlay_tools.patches.series import load_series
from overlay_tools.settings import Project, load_project
from overlay_tools.subprocesses import git, run
from overlay_tools.upstream.lockfile import Lock, dump_lock
from overlay_tools.upstream.source_tree import SourceTree, open_source_tree, parse

NEAR = 3  # lines from a change of upstream's, so that it reaches into the context of the hunk
_HEADER = "Subject: s\nWhy: w\nApplies: =={}\nForwarded: no: made up\nRemove-When: never\n\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Insertion:
    """A line that goes into `file` after its line `after` (counted from 1), in the function `scope`."""

    number: int
    file: str
    after: int
    line: str
    scope: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """Where the statements before and after an insertion stand in the new release, None where upstream changed them."""

    before: int | None
    after: int | None


Answer = tuple[str, bytes] | None  # the file and its new content, or None where a tool gives up


def bench_port(lock: Lock, cache: Path, old: str, new: str, count: int) -> Mapping[str, Counter[str]]:
    """Carry `count` insertions from release `old` to `new` with each tool, and print how each did.

    Returns for each tool how many came out right, wrong and given up.
    """
    versions = list(lock)
    between = versions[versions.index(old) : versions.index(new) + 1]
    with ExitStack() as stack:
        sources = [stack.enter_context(open_source_tree(lock[version], cache)) for version in between]
        folder = Path(stack.enter_context(TemporaryDirectory()))
        repository = _Repository(folder / "git", sources)
        with console.step(f"Choose {count} places that upstream changed from {old} to {new}"):
            insertions = choose(sources[0], repository, count)
        with console.step("Follow them through the releases between"):
            truths = [repository.follow(insertion) for insertion in insertions]
        tools: dict[str, Callable[[Insertion, str], Answer]] = {
            "git apply": repository.apply,
            "git apply -3": repository.apply_three_way,
            "patch": repository.patch,
        }
        counts: dict[str, Counter[str]] = {}
        for name, tool in tools.items():
            with console.step(name):
                counts[name] = Counter(
                    judge(insertion, truth, sources, tool(insertion, repository.diff(insertion)))
                    for insertion, truth in zip(insertions, truths, strict=True)
                )
        with console.step("port"):
            applied, proposed = Counter[str](), Counter[str]()
            for insertion, truth in zip(insertions, truths, strict=True):
                path = folder / f"{insertion.number}.patch"
                path.write_text(_HEADER.format(old) + repository.diff(insertion), encoding="utf-8")
                placed = relocate(load_patch(path, "stress"), HookedTree(sources[0]), HookedTree(sources[-1]))
                placement = placed.placements[0]
                answer = (placement.file, placed.files[placement.file]) if placement.line else None
                (applied if placed.settled else proposed)[judge(insertion, truth, sources, answer)] += 1
        counts |= {"port, applied": applied, "port, proposed": proposed}
    for name, counted in counts.items():
        console.line(
            f"  {name:<15}" + "".join(f" {counted[word]:>4} {word}," for word in ("right", "wrong", "given up"))
        )
    return counts


def replay(project: Project, lock: Lock, cache: Path) -> Counter[str]:
    """Port the oldest release's hooks from it alone to each later one in turn, and print what became of their hunks.

    Returns how many hunks came out how.
    Raises PortError at the first release that needs a person.
    """
    oldest, *later = lock
    counts = Counter[str]()
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("overlay", "ci", "NOTICE", "LICENSE", "pyproject.toml"):
            (root / name).symlink_to(project.root / name)
        (root / "upstream.lock").write_text(dump_lock({oldest: lock[oldest]}), encoding="utf-8")
        hooks = [hook for hook in load_series(project.patches) if hook.variant(oldest)]  # the others came later
        queue = PatchQueue(hooks, list(lock))
        for hook in hooks:
            for version in later:
                queue.drop(hook.name, version)
        names = "".join(f"{hook.name}\n" for hook in hooks)  # due in every release, as when they were written
        write_patches(root / "patches", queue.files("") | {"series": names})
        for version in later:
            port = Port(load_project(root), cache)
            try:
                rows = port.start(version, lock.__getitem__)
            except PortError:
                # What a person does where a hook ends: upstream has its lines there.
                due = {hook.name for hook in load_series(root / "patches") if hook.due.contains(version, True)}
                ended = sorted(due - {hook.name for hook in hooks if hook.variant(version)})
                if not ended:
                    raise
                rows = port.resume(ended)
            counts.update(outcome.split()[0] for _, _, outcome, _ in rows)
        after = load_series(root / "patches")
        for version in lock:  # the effect, not the report
            with open_source_tree(lock[version], cache) as sources:
                if HookedTree.apply(sources, after).touched != HookedTree.apply(sources, hooks).touched:
                    raise PortError(f"{version}: the replayed series does not make what patches/ makes of it.")
    console.line(
        f"Replay, {oldest} to {later[-1]}: {', '.join(f'{n} {word}' for word, n in counts.items())}; none wrong"
    )
    return counts


def choose(sources: SourceTree, repository: _Repository, count: int) -> list[Insertion]:
    """Choose places between two statements of a function, at most one a function, the same on every run."""
    found: list[Insertion] = []
    for name, changed in sorted(repository.changed_lines().items()):
        for scope, after, indent in _gaps(parse(sources.read(name) or b"", name), changed):
            found.append(Insertion(number=0, file=name, after=after, line=indent, scope=scope))
    chosen = random.Random(1).sample(found, min(count, len(found)))
    return [
        Insertion(number=n, file=i.file, after=i.after, line=f"{i.line}pass  # insertion {n}", scope=i.scope)
        for n, i in enumerate(chosen)
    ]


def judge(insertion: Insertion, truth: Truth, sources: Sequence[SourceTree], answer: Answer) -> str:
    """Say whether an answer is right: in the function, and next to one of the statements that it stood between."""
    if answer is None:
        return "given up"
    file, content = answer
    lines = content.decode("utf-8").split("\n")
    at = next((n for n, line in enumerate(lines) if line.strip() == insertion.line.strip()), None)
    if at is None:
        return "given up"
    if file == insertion.file and (truth.before is not None or truth.after is not None):
        return "right" if at == truth.before or at + 1 == truth.after else "wrong"
    # Upstream changed both statements, or moved them: the function's name and a neighbour's text are what is left.
    old = (sources[0].read(insertion.file) or b"").decode("utf-8").split("\n")
    same = (
        lines[at - 1].strip() == old[insertion.after - 1].strip()
        or lines[at + 1].strip() == old[insertion.after].strip()
    )
    names = {scope.rpartition(".")[2] for scope in (insertion.scope, scope_of(content, at + 1))}
    return "right" if same and len(names) == 1 else "wrong"


class _Repository:
    """The Python files of several releases, a commit each, for the tools of git."""

    def __init__(self, folder: Path, sources: Sequence[SourceTree]) -> None:
        self.folder, self.sources = folder, sources
        folder.mkdir()
        self._git("init", "--quiet")
        for number, release in enumerate(sources):
            # Only what the first and the last release differ in can hold an insertion.
            names = set(release.names) & set(sources[0].names) | (
                set(release.names) if number == len(sources) - 1 else set()
            )
            for path in folder.glob("sglang"):
                run(["rm", "-r", path])
            for name in names:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(release.read(name) or b"")
            self._git("add", "--all")
            self._git("-c", "user.name=x", "-c", "user.email=x", "commit", "--quiet", "-m", release.version)
            self._git("tag", f"r{number}")

    def _git(self, *words: str, stdin: str | None = None) -> str:
        done = git(words, cwd=self.folder, stdin=stdin)
        if done.returncode != 0:
            raise ToolError(f"git {' '.join(words)} failed: {done.stderr.strip()}")
        return done.stdout

    def changed_lines(self) -> dict[str, list[int]]:
        """Return the lines of the first release near which the last one differs, by file."""
        text = self._git("diff", "-U0", "--no-renames", "--histogram", "r0", f"r{len(self.sources) - 1}", "--", "*.py")
        found: dict[str, list[int]] = {}
        names, name = set(self.sources[0].names), ""
        for line in text.splitlines():
            if line.startswith("--- "):
                name = line[6:]
            elif (head := re.match(r"@@ -(\d+)(?:,(\d+))? ", line)) and name in names:
                start, size = int(head[1]), int(head[2] or 1)
                found.setdefault(name, []).extend(range(start, start + max(size, 1)))
        return found

    def follow(self, insertion: Insertion) -> Truth:
        """Follow the lines around an insertion through all releases."""
        at: list[int | None] = [insertion.after, insertion.after + 1]
        for number in range(len(self.sources) - 1):
            words = ("diff", "-U0", "--no-renames", "--patience", f"r{number}", f"r{number + 1}", "--", insertion.file)
            at = [None if line is None else _image(self._git(*words), line) for line in at]
        return Truth(before=at[0], after=at[1])

    def diff(self, insertion: Insertion) -> str:
        """Return an insertion as a diff, with the blobs that `git apply -3` needs in the repository."""
        old = (self.sources[0].read(insertion.file) or b"").decode("utf-8").split("\n")
        new = [*old[: insertion.after], insertion.line, *old[insertion.after :]]
        blobs = [self._git("hash-object", "-w", "--stdin", stdin="\n".join(lines)).strip() for lines in (old, new)]
        name = insertion.file
        body = "\n".join(difflib.unified_diff(old, new, f"a/{name}", f"b/{name}", lineterm="", n=3)) + "\n"
        return f"diff --git a/{name} b/{name}\nindex {blobs[0]}..{blobs[1]} 100644\n" + re.sub(r"(?m)^\+$", "+", body)

    def _clean(self, file: str) -> Path | None:
        data = self.sources[-1].read(file)
        if data is None:
            return None
        path = self.folder / file
        path.write_bytes(data)
        return path

    def apply(self, insertion: Insertion, diff: str) -> Answer:
        """Apply with `git apply`."""
        path = self._clean(insertion.file)
        if path is None or git(["apply", "--whitespace=nowarn", "-"], cwd=self.folder, stdin=diff).returncode != 0:
            return None
        return insertion.file, path.read_bytes()

    def apply_three_way(self, insertion: Insertion, diff: str) -> Answer:
        """Apply with `git apply -3`, which gives up where it leaves conflict markers."""
        self._git("reset", "--quiet", "--hard")
        path = self.folder / insertion.file
        done = git(["apply", "-3", "--whitespace=nowarn", "-"], cwd=self.folder, stdin=diff)
        return None if done.returncode != 0 else (insertion.file, path.read_bytes())

    def patch(self, insertion: Insertion, diff: str) -> Answer:
        """Apply with GNU patch, with the fuzz that it allows by default."""
        path = self._clean(insertion.file)
        if path is None:
            return None
        done = run(["patch", "--quiet", "--batch", "-p1", "-r", "-"], cwd=self.folder, stdin=diff, check=False)
        answer = None if done.returncode != 0 else (insertion.file, path.read_bytes())
        for left in path.parent.glob("*.orig"):
            left.unlink()
        return answer


def _gaps(tree: ast.Module, changed: Sequence[int]) -> Iterator[tuple[str, int, str]]:
    """Yield a place in each function between two statements of one line each, as function, line and indentation."""
    near = {line + step for line in changed for step in range(-NEAR, NEAR + 1)}

    def visit(node: ast.AST, prefix: str) -> Iterator[tuple[str, int, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield from visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _gaps_of(child, prefix + child.name, near)

    yield from visit(tree, "")


def _gaps_of(function: ast.AST, name: str, near: Collection[int]) -> Iterator[tuple[str, int, str]]:
    for node in ast.walk(function):
        body = getattr(node, "body", None)
        for first, second in itertools.pairwise(body) if isinstance(body, list) else ():
            whole = not isinstance(second, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))  # with decorators
            if whole and first.end_lineno in near and second.lineno == first.end_lineno + 1:
                yield name, first.end_lineno, " " * first.col_offset
                return


def _image(diff: str, line: int) -> int | None:
    """Return the number that a line has after a diff without context, or None if the diff changes it."""
    shift = 0
    if re.search(r"^deleted file", diff, re.MULTILINE):
        return None
    for head in re.finditer(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", diff, re.MULTILINE):
        start, size, _, more = (int(number) if number else 1 for number in head.groups())
        if size and start <= line < start + size:
            return None
        if (start if size else start + 1) <= line:
            shift += more - size
    return line + shift
