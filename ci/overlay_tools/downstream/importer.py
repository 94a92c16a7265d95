"""Patches that others made, or a fork, brought in: changed files as hooks, new ones to overlay/."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.specifiers import SpecifierSet
from unidiff import PatchSet

from overlay_tools import console
from overlay_tools.archive.reader import WheelReader
from overlay_tools.checkout import is_scratch
from overlay_tools.downstream.diff import make_diff
from overlay_tools.downstream.foreign_patch import FileChange, ForeignPatch, apply_as_stated, read_patches
from overlay_tools.downstream.fork import compare, find_base, is_fork, open_fork
from overlay_tools.downstream.queue import PatchQueue, parse_releases
from overlay_tools.downstream.staging import stage
from overlay_tools.downstream.transaction import undo, write_patches
from overlay_tools.errors import REPORT, BuildError, OverlayError, PatchError, UsageError
from overlay_tools.patches.apply import apply_series
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.lint import lint, load_checked_series
from overlay_tools.patches.model import README, TO_BE_FILLED, Hook, Patch
from overlay_tools.patches.relocate import relocate
from overlay_tools.settings import Project
from overlay_tools.upstream.download import fetch
from overlay_tools.upstream.lockfile import Lock, get_release, load_lock
from overlay_tools.upstream.source_tree import open_source_tree, source_wheel
from overlay_tools.wheels.overlay_files import compile_all

OUTCOMES = ("brought in", "in part", "conflict", "left out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What becomes of one patch.

    `outcome`: one of `OUTCOMES`; `hook`: the one that it becomes, with how many `lines`, for which `releases`; `added`:
    its new files; `notes`: what of it is left out or stands in its way.
    """

    title: str
    outcome: str
    hook: str = ""
    lines: str = ""
    releases: Sequence[str] = ()
    added: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportPlan:
    """What an import would write.

    `base`: the release that the patches apply to, and `base_note` how it was found; `rows`: what becomes of each patch;
    `warnings`: what it does to other releases; `patches`: the files of patches/; `overlay`: new files by path in a
    wheel; `unfilled`: how many hooks lack a field.
    """

    base: str
    base_note: str
    rows: Sequence[Row]
    warnings: Sequence[str]
    patches: Mapping[str, str]
    overlay: Mapping[str, bytes]
    unfilled: int


def plan_import(
    project: Project, cache: Path, source: Path, base: str | None, releases: str | None, exclude: Sequence[str]
) -> ImportPlan:
    """Find what of a source can be brought in; write nothing.

    Parameters: `base`, the release that it was made on, None to find it; `releases`, the range of releases that take
    its hooks too where they fit, None for the base alone; `exclude`, patterns of a fork's files to leave alone.
    Raises PatchError, WheelError or WorktreeError for a source that cannot be read; LockError for an unknown base.
    """
    undo(project.root)
    lock = load_lock(project.lock)
    if base is not None:
        get_release(lock, base, project.lock)
    range_ = parse_releases(releases)
    hooks = load_checked_series(project.patches, list(lock))
    note = ""
    if not source.exists():
        raise PatchError(f"There is no file or folder {source}.", hint="`nox -s import -- --help` says what it may be.")
    if is_fork(source):
        with ExitStack() as stack, console.step(f"Compare {source.name} with upstream"):
            fork = open_fork(source, exclude, stack)
            if base is None:
                base, count = find_base(fork, lock, cache, exclude)
                note = f", in which the fewest files differ: {count}"
            release = lock[base]
            wheel = stack.enter_context(WheelReader(fetch(release, source_wheel(release), cache)))
            patches = compare(fork, wheel, base, exclude)
        if not patches:
            raise OverlayError(f"{source} does not differ from sglang {base}.", hint="There is nothing to bring in.")
    elif exclude:
        raise UsageError("--exclude goes with a fork only.", hint="Leave the patch out of its folder instead.")
    else:
        patches, base = read_patches(source), base or project.default
    versions = [v for v in lock if v == base or (range_ is not None and range_.contains(v, prereleases=True))]
    with ExitStack() as stack, console.step(f"Apply {len(patches)} patches to sglang {base}"):
        trees = {v: HookedTree.apply(stack.enter_context(open_source_tree(lock[v], cache)), hooks) for v in versions}
        importer = _Importer(project, lock, hooks, base, trees)
        rows = [importer.bring_in(patch) for patch in patches]
    return ImportPlan(
        base=base,
        base_note=note,
        rows=rows,
        warnings=_clashes(importer.overlay, lock, cache),
        patches=importer.queue.files((project.patches / "series").read_text(encoding="utf-8")),
        overlay=importer.overlay,
        unfilled=importer.unfilled,
    )


def write_import(project: Project, plan: ImportPlan) -> list[str]:
    """Write what a plan holds, all of it or nothing, and return the paths that were written.

    Raises PatchError if the series would not hold.
    """
    with TemporaryDirectory() as folder:
        stage(Path(folder), plan.patches, project.patches, list(load_lock(project.lock)))
    return write_patches(
        project.patches, plan.patches, {f"overlay/{name}": data for name, data in plan.overlay.items()}
    )


def _clashes(overlay: Mapping[str, bytes], lock: Lock, cache: Path) -> list[str]:
    """Return, a line a release, which new files upstream has of its own there, so that the release is not built."""
    found = []
    for version, release in lock.items() if overlay else ():
        with WheelReader(fetch(release, source_wheel(release), cache)) as wheel:
            both = sorted(name for name in overlay if name in wheel.members)
        if both:
            rest = f" and {len(both) - 1} more" if both[1:] else ""
            found.append(f"sglang {version} has its own {both[0]}{rest}: it cannot be built beside overlay/'s.")
    return found


@dataclass(kw_only=True, slots=True)
class _Attempt:
    """A patch that is being applied: what upstream's files and the overlay's become, and what `seen` becomes."""

    hooked: dict[str, bytes] = field(default_factory=dict)
    overlay: dict[str, bytes] = field(default_factory=dict)
    seen: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class _Importer:
    """Brings in patches, one after the other.

    Parameters: `base`, the release that they apply to; `trees`, that release and the others that may take the hooks,
    with the series applied. `queue` and `overlay` are what patches/ and overlay/ are to hold.
    """

    def __init__(
        self, project: Project, lock: Lock, hooks: Sequence[Hook], base: str, trees: Mapping[str, HookedTree]
    ) -> None:
        self.project, self.base, self.trees = project, base, trees
        self.versions = list(lock)
        self.queue = PatchQueue(hooks, self.versions)
        self.names = {hook.name for hook in hooks} | {"series", README}
        self.overlay: dict[str, bytes] = {}
        self.unfilled = 0
        self._seen: dict[str, bytes] = {}  # files as the patches know them: without the series

    def bring_in(self, patch: ForeignPatch) -> Row:
        """Apply one patch to the base and note what is to be written, or say why not."""
        attempt = _Attempt(notes=[f"{file.name}: {file.left_out}" for file in patch.files if file.left_out])
        wanted = [file for file in patch.files if not file.left_out]
        if not wanted:
            nothing = [] if patch.files else ["there is no diff in it"]
            return Row(title=patch.title, outcome="left out", notes=[*attempt.notes, *nothing])
        try:
            for file in wanted:
                self._apply(patch, file, attempt)
            compile_all({**attempt.hooked, **attempt.overlay})
            made = self._make_hook(patch, attempt.hooked) if attempt.hooked else None
        except (PatchError, BuildError) as error:
            return Row(title=patch.title, outcome="conflict", notes=[*error.problems, *attempt.notes])
        self.overlay |= attempt.overlay
        self._seen |= attempt.seen
        return Row(
            title=patch.title,
            outcome="in part" if attempt.notes else "brought in",
            hook=made.hook if made else "",
            lines=f"+{made.added}/-{made.removed}" if made else "",
            releases=self._take(made) if made else (),
            added=list(attempt.overlay),
            notes=attempt.notes,
        )

    def _apply(self, patch: ForeignPatch, change: FileChange, attempt: _Attempt) -> None:
        """Apply what a patch does to one file.

        Raises PatchError if that is not possible.
        """
        name, tree = change.name, self.trees[self.base]
        if name in self.project.replaced(self.base):
            raise PatchError(f"{name}: overlay/ has a file of its own in its place.")
        if name in attempt.hooked or name in attempt.overlay:
            raise PatchError(f"{name} is changed by the patch twice: make it one diff.")
        if change.content is not None:
            self._add(change.name, change.content, attempt)
            return
        upstream = tree.sources.read(name) is not None
        read = tree.read if upstream else self._read_overlay
        seen = self._seen[name] if name in self._seen else tree.sources.read(name) if upstream else read(name)
        (parsed,) = PatchSet.from_string(change.diff)
        stated = None if seen is None else apply_as_stated(seen, parsed)
        if seen is None or stated is None:
            made = self._apply_diff(patch, change, change.diff, read)
        elif read(name) == seen:
            made = stated
        else:
            made = self._apply_diff(patch, change, make_diff({name: seen}, {name: stated}), read)
        attempt.seen[name] = made if stated is None else stated
        (attempt.hooked if upstream else attempt.overlay)[name] = made

    def _apply_diff(
        self, patch: ForeignPatch, change: FileChange, diff: str, read: Callable[[str], bytes | None]
    ) -> bytes:
        """Return what a diff makes of a file, with the series applied."""
        foreign = Patch(
            hook=patch.name,
            path=patch.path,
            sha256="",
            header={},
            applies=SpecifierSet(),
            diff=diff,
            first_line=max(change.line - 3, 1),  # an error names the line of the @@, three lines further
            files=list(PatchSet.from_string(diff)),
        )
        return apply_series([foreign], read, f"sglang {self.base}")[change.name]

    def _add(self, name: str, content: bytes, attempt: _Attempt) -> None:
        if self.trees[self.base].sources.read(name) is not None:
            raise PatchError(f"{name} is a new file, and sglang {self.base} has one of this name.")
        if is_scratch(Path(name)):
            raise PatchError(f"{name} would go into no wheel: hidden files and editors' do not.")
        here = self._read_overlay(name)
        if here is not None and here != content:
            raise PatchError(f"{name} is a new file, and overlay/{name} exists with another content.")
        attempt.overlay[name] = content

    def _read_overlay(self, name: str) -> bytes | None:
        path = self.project.overlay / name
        return self.overlay[name] if name in self.overlay else path.read_bytes() if path.is_file() else None

    def _make_hook(self, patch: ForeignPatch, after: Mapping[str, bytes]) -> Patch:
        """Add a hook for the base and return its variant.

        Raises PatchError if the series may not have it.
        """
        tree, name = self.trees[self.base], self._free_name(patch.name)
        before = {path: tree.read(path) or b"" for path in after}
        header = {"Why": TO_BE_FILLED, "Forwarded": f"no: {TO_BE_FILLED}", "Remove-When": TO_BE_FILLED, **patch.header}
        diff = make_diff(before, after)
        trial = PatchQueue((), self.versions)
        trial.add_variant(name, [self.base], header, diff)
        made = trial.variant(name, self.base, self.project.patches)
        if faults := lint([Hook(name=name, due=made.applies, variants=(made,))], [self.base]):
            raise PatchError(*faults)
        if apply_series([made], tree.read, f"sglang {self.base}") != after:
            raise PatchError(f"{patch.title}: its diff does not make what it should.", hint=REPORT)
        self.queue.add_variant(name, [self.base], header, diff)
        self.names.add(name)
        self.unfilled += any(TO_BE_FILLED in value for value in header.values())
        return made

    def _take(self, made: Patch) -> list[str]:
        """Let the base and each release that a hook fits exactly take it, and return them."""
        taken = []
        for version, tree in self.trees.items():
            if version == self.base or relocate(made, self.trees[self.base], tree).settled:
                taken.append(version)
        for version in taken:
            if version != self.base:
                self.queue.take(made.hook, version, like=self.base)
        for version in taken:
            tree = self.trees[version]
            tree.touched.update(apply_series([made], tree.read, f"sglang {version}"))
        return taken

    def _free_name(self, wanted: str) -> str:
        names = [wanted, *(f"{wanted}-{number}" for number in range(2, 1000))]
        return next(name for name in names if name not in self.names)
