"""Patches that others made, or a fork, brought in: changed files as hooks, new ones to overlay/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.specifiers import SpecifierSet

from overlay_tools import console
from overlay_tools.api_check.registered_names import places_of, registered_names
from overlay_tools.archive.reader import WheelReader
from overlay_tools.downstream.committed_hooks import CommittedHook
from overlay_tools.downstream.edit import edit, refuse_to_lose
from overlay_tools.downstream.exact_import import ExactAttempt, ExactImport
from overlay_tools.downstream.export_contract import make_plan
from overlay_tools.downstream.export_plan import Exported, ExportPlan, name_ranges
from overlay_tools.downstream.foreign_patch import ForeignPatch, read_patches
from overlay_tools.downstream.fork import check_excluded, compare, find_base, is_fork, open_fork
from overlay_tools.downstream.hook_needs import HookNames, read_names, read_patch_names
from overlay_tools.downstream.import_settings import ImportSettings, plan_settings
from overlay_tools.downstream.marked_import import KnownRelease, MarkedImport, MarkedPatch
from overlay_tools.downstream.queue import parse_releases
from overlay_tools.downstream.staging import stage
from overlay_tools.downstream.transaction import read_checkout, undo, write_patches
from overlay_tools.downstream.worktree import format_message
from overlay_tools.errors import REPORT, OverlayError, PatchError, UsageError
from overlay_tools.patches.lint import load_checked_series
from overlay_tools.patches.model import TO_BE_FILLED, Hook
from overlay_tools.settings import Project, load_project
from overlay_tools.upstream.download import fetch
from overlay_tools.upstream.lockfile import Lock, get_release, load_lock
from overlay_tools.upstream.source_tree import SourceTree, open_source_tree, parse, source_wheel
from overlay_tools.wheels.dependencies import compare_requirements

_NOT_COMPARED = "what a checkout requires is not compared: import its wheel, or see its pyproject.toml yourself"
OUTCOMES = ("brought in", "in part", "there already", "conflict", "left out")


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
    `decisions`: which releases take each hook, and why others do not; `warnings`: what else a person should know;
    `patches`: the files of patches/; `others`: those of overlay/, and pyproject.toml; `settings`: what changes in that;
    `unfilled`: how many hooks lack a field; `marked`: what is left to a person in the worktree of the base; `seen`: the
    checkout that all of this goes by.
    """

    base: str
    base_note: str
    rows: Sequence[Row]
    decisions: Sequence[tuple[str, str, str]]
    warnings: Sequence[str]
    patches: Mapping[str, str]
    others: Mapping[str, bytes | None]
    settings: ImportSettings
    unfilled: int
    marked: Sequence[MarkedPatch]
    seen: Mapping[str, bytes | None]

    @property
    def writes(self) -> bool:
        """Tell whether there is anything to write."""
        return bool(self.marked or self.settings.requirements) or any(
            row.outcome in ("brought in", "in part") for row in self.rows
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """What is to be brought in: patches, in order, that were made on the release `base`, and how that was found.

    `fork`: whether they are what a fork changes of that release; `metadata`: METADATA of both, if the fork has one.
    """

    patches: Sequence[ForeignPatch]
    base: str
    note: str
    fork: bool
    metadata: tuple[bytes, bytes] | None = None


def plan_import(
    project: Project, cache: Path, source: Path, base: str | None, releases: str | None, exclude: Sequence[str]
) -> ImportPlan:
    """Find what of a source can be brought in; write nothing.

    Parameters: `base`, the release that it was made on, None to find it; `releases`, the range of releases that take
    its hooks too where they belong, None for the base alone; `exclude`, patterns of a fork's files to leave alone.
    Raises PatchError, WheelError or WorktreeError for a source that cannot be read; LockError for an unknown base.
    """
    undo(project.root)
    seen = read_checkout(project.root)
    lock, wanted = load_lock(project.lock), parse_releases(releases)
    if base is not None:
        get_release(lock, base, project.lock)
    hooks = load_checked_series(project.patches, list(lock))
    read = _read_source(project, lock, cache, source, base, exclude)
    with ExitStack() as stack:
        with console.step(f"Apply {len(read.patches)} patches to sglang {read.base}"):
            sources = {v: stack.enter_context(open_source_tree(lock[v], cache)) for v in lock}
            exact = ExactImport(project, hooks, list(lock), sources[read.base], read.patches)
            attempts = _apply(exact, read.patches)
            marked = _mark(exact, attempts, sources, fork=read.fork)
        settings = plan_settings(project, read.base, exact.overlay, wanted, sources, read.metadata)
        others: dict[str, bytes | None] = {
            f"overlay/{name}": data for name, data in exact.overlay.items() if exact.on_disk(name) != data
        }
        others[project.settings.name] = settings.text.encode()
        plan, broken = _plan_hooks(project, exact, hooks, attempts, wanted, sources, others)
        namesakes = _namesakes(exact, sources)
    return ImportPlan(
        base=read.base,
        base_note=read.note,
        rows=_rows(attempts, marked, plan, settings.releases),
        decisions=plan.rows() if wanted is not None else [],
        warnings=[
            *settings.warnings,
            *[_NOT_COMPARED] * (read.fork and read.metadata is None),
            *(f"contract of sglang {read.base}: {line}" for line in broken),
            *namesakes,
        ],
        patches=plan.files(),
        others=others,
        settings=settings,
        unfilled=sum(any(TO_BE_FILLED in value for value in a.header.values()) for a in attempts if a.hook),
        marked=[patch for patch in marked if patch.files or patch.undone],
        seen=seen,
    )


def write_import(project: Project, cache: Path, plan: ImportPlan, *, discard: bool) -> list[str]:
    """Write what a plan holds to patches/ and overlay/, all of it or nothing, and return the paths that were written.

    What is left to a person then stands in the worktree of the base, a commit a patch; it is made anew.
    Parameters: `discard`, whether that may hold work that only it has.
    Raises PatchError if the series would not hold, WorktreeError if the worktree holds such work.
    """
    with TemporaryDirectory() as folder:
        stage(Path(folder), plan.patches, project.patches, list(load_lock(project.lock)))
    if plan.marked and not discard:  # once more: someone may have worked there while the question waited
        refuse_worktree(project, plan.base)
    changed = write_patches(project.patches, plan.patches, plan.others, seen=plan.seen)
    if plan.marked:
        tree = edit(load_project(project.root), cache, plan.base, discard=True)  # its settings have been written
        for patch in (patch for patch in plan.marked if patch.files):
            tree.commit_files(patch.files, format_message(patch.attempt.header, patch.attempt.name))
    return changed


def refuse_worktree(project: Project, base: str) -> None:
    """Raise WorktreeError if the worktree of the base holds work that only it has."""
    hooks = load_checked_series(project.patches, list(load_lock(project.lock)))
    refuse_to_lose(project, base, hooks, "`--discard`")


def _read_source(
    project: Project, lock: Lock, cache: Path, source: Path, base: str | None, exclude: Sequence[str]
) -> _Source:
    if not source.exists():
        raise PatchError(f"There is no file or folder {source}.", hint="`nox -s import -- --help` says what it may be.")
    if not is_fork(source):
        if exclude:
            raise UsageError("--exclude goes with a fork only.", hint="Leave the patch out of its folder instead.")
        return _Source(patches=read_patches(source), base=base or project.default, note="", fork=False)
    note = ""
    with ExitStack() as stack, console.step(f"Compare {source.name} with upstream"):
        fork = open_fork(source, exclude, stack)
        if base is None:
            base, count = find_base(fork, lock, cache, exclude)
            note = f", in which the fewest files differ: {count}"
        release = lock[base]
        wheel = stack.enter_context(WheelReader(fetch(release, source_wheel(release), cache)))
        check_excluded(fork, wheel, base, exclude)
        patches = compare(fork, wheel, base, exclude)
        required = wheel.read(f"{wheel.dist_info}/METADATA")
    metadata = None if fork.metadata is None else (required, fork.metadata)
    if not patches and (metadata is None or not compare_requirements(*metadata).differ):
        raise OverlayError(f"{source} does not differ from sglang {base}.", hint="There is nothing to bring in.")
    return _Source(patches=patches, base=base, note=note, fork=True, metadata=metadata)


def _apply(exact: ExactImport, patches: Sequence[ForeignPatch]) -> list[ExactAttempt]:
    """Apply patches exactly, but for those that do not apply or need what one of these brings."""
    open_: list[tuple[str, HookNames]] = []

    def held_up(hook: CommittedHook) -> str:
        names = read_names(hook, None) if open_ else None
        needed = [title for title, other in open_ if names is not None and names.needs(other, changed=False)]
        return f"it may need {', '.join(needed)}, which is in conflict" if needed else ""

    attempts = []
    for patch in patches:
        attempt = exact.bring_in(patch, held_up)
        if attempt.faults:
            exact.reserve(attempt)
            open_.append((patch.title, read_patch_names(patch, exact.read)))
        attempts.append(attempt)
    return attempts


def _mark(
    exact: ExactImport, attempts: Sequence[ExactAttempt], sources: Mapping[str, SourceTree], *, fork: bool
) -> list[MarkedPatch]:
    """Put the patches that conflict where a person finds them."""
    if not any(attempt.faults for attempt in attempts):
        return []
    base, versions = exact.base.version, list(sources)
    near = sorted(versions, key=lambda v: abs(versions.index(v) - versions.index(base)))
    known = [KnownRelease(sources[v]) for v in near if v == base or not fork]
    import_, marked = MarkedImport(exact), []
    for attempt in attempts:
        fits = {each.sources: lines for each in known if (lines := each.take(attempt.patch)) is not None}
        if not attempt.faults:
            continue
        source, lines = next(iter(fits.items()), (exact.base, None))
        patch = import_.put(attempt, lines, source)
        others = [v for v in versions if v in {found.version for found in fits}]
        if others and base not in others:
            said = f"it applies exactly to sglang {name_ranges(others, versions)}: --base {source.version}"
            patch = patch.noting(said)
        marked.append(patch)
    return marked


def _plan_hooks(
    project: Project,
    exact: ExactImport,
    hooks: Sequence[Hook],
    attempts: Sequence[ExactAttempt],
    wanted: SpecifierSet | None,
    sources: Mapping[str, SourceTree],
    others: Mapping[str, bytes | None],
) -> tuple[ExportPlan, list[str]]:
    """Plan which releases take the hooks, by the rules of an export; return what the contract of the base lacks too."""
    base = exact.base.version
    exported = Exported(
        hooks=hooks,
        committed={attempt.hook.name: attempt.hook for attempt in attempts if attempt.hook},
        version=base,
        wanted=SpecifierSet(f"=={base}") if wanted is None else wanted,
        patches=project.patches,
    )
    with console.step(f"Plan {len(exported.committed)} hooks"):
        plan, broken = make_plan(project, exported, sources, others)
    made = plan.releases[base]
    if wrong := [name for name in exact.tree.touched if made.read(name) != exact.tree.read(name)]:
        raise PatchError(*(f"{name} would not be what the patches make of it." for name in wrong), hint=REPORT)
    return plan, broken


def _namesakes(exact: ExactImport, sources: Mapping[str, SourceTree]) -> list[str]:
    """Say which architectures, model types and processors of those brought in other releases have of their own."""
    brought: dict[tuple[str, str], str] = {}
    for path in (name for name in {**exact.overlay, **exact.tree.touched} if name.endswith(".py")):
        before = {(kind, name) for _, kind, name in registered_names(path, exact.base.tree(path))}
        data = exact.overlay[path] if path in exact.overlay else exact.tree.read(path)
        tree = None if data is None else parse(data, path)
        brought |= {(kind, name): path for _, kind, name in registered_names(path, tree) if (kind, name) not in before}
    words = {name for _, name in brought}
    others = {v: tree for v, tree in sources.items() if tree is not exact.base and words}
    places = {v: places_of(tree, brought, tree.holding(*words)) for v, tree in others.items()}
    lines = []
    for name, path in brought.items():
        if having := [version for version, found in places.items() if name in found]:
            path_, line = places[having[-1]][name][0]
            said = f"upstream has one in {name_ranges(having, list(sources))}: {path_}:{line}"
            lines.append(f"{path}: {' '.join(name)}: {said}")
    return lines


def _rows(
    attempts: Sequence[ExactAttempt],
    marked: Sequence[MarkedPatch],
    plan: ExportPlan,
    new: Mapping[str, Sequence[str]],
) -> list[Row]:
    open_ = {id(patch.attempt): patch for patch in marked}
    rows = []
    for attempt in attempts:
        patch, variant = open_.get(id(attempt)), attempt.variant
        if patch is not None:
            outcome = "conflict" if patch.files or patch.undone else "there already"
        elif attempt.there:
            outcome = "there already"
        else:
            outcome = "left out" if not attempt.holds else "in part" if attempt.notes else "brought in"
        hook = attempt.hook.name if attempt.hook else ""
        taken = [each.release for each in plan.decisions if each.taken and each.hook == hook]
        rows.append(
            Row(
                title=attempt.patch.title,
                outcome=outcome,
                hook=attempt.name if variant or (patch and patch.files) or attempt.there else "",
                lines=f"+{variant.added}/-{variant.removed}" if variant else "",
                releases=taken or next((new[name] for name in attempt.added if name in new), ()),
                added=[name for name, data in attempt.added.items() if data is not None],
                notes=[*attempt.faults, *(patch.notes if patch else ()), *attempt.notes, *_taken_away(attempt)],
            )
        )
    return rows


def _taken_away(attempt: ExactAttempt) -> list[str]:
    return [f"takes away overlay/{name}" for name, data in attempt.added.items() if data is None]
