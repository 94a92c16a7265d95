"""Collect the status of every release: whether hooks apply, what the tests said, what the overlay needs of upstream."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import date
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path

from overlay_tools.api_check.base_mentions import BaseMention, find_base_mentions
from overlay_tools.api_check.contract import Finding, check_contract
from overlay_tools.errors import OverlayError
from overlay_tools.patches.apply import apply_series, find_hunk
from overlay_tools.patches.model import Hook, Patch, source_of, split_lines
from overlay_tools.proving.inputs import Inputs
from overlay_tools.proving.results import Result, commit_of, load_results
from overlay_tools.proving.stages import STAGES, stages_of
from overlay_tools.report.hook_distance import measure_hooks
from overlay_tools.report.kept_checks import Cells, KeptChecks
from overlay_tools.report.model import Cell, State, Status, StatusTable
from overlay_tools.report.overlay_cells import COLUMNS, files_cell, requirements_cell
from overlay_tools.settings import Project
from overlay_tools.supervisor import end_with_parent
from overlay_tools.upstream.lockfile import Release
from overlay_tools.upstream.source_tree import SourceTree, open_source_tree
from overlay_tools.wheels.overlay_files import check_ranges

_PROCESSES, _FIRST_SHARE = 2, 0.57


def _begin_worker() -> None:
    """Prepare a process for _check_release: none outlives this one, and Ctrl-C is for this one to answer."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The syntax trees of whole modules come and go; searching them for cycles would take a third of the time.
    gc.disable()


def collect_status(
    project: Project, lock: Mapping[str, Release], hooks: Sequence[Hook], cache: Path, python: str | None = None
) -> Status:
    """Return all that is known of each release. Its sources are read if they were not, or what is checked has changed.

    Parameters: `python`, as "3.12", the one that results are to be of, this one if None.
    What cannot be found out about a release is a red cell.
    Raises OverlayError if the overlay or the results cannot be read.
    """
    check_ranges(project, lock)
    results = load_results(project.results)
    required = {version: stages_of(project, version) for version in lock}
    known = {*(stage for stages in required.values() for stage in stages), *(s for v, s in results if v in lock)}
    columns = [*STAGES, *sorted(known - {*STAGES})]
    with ProcessPoolExecutor(_PROCESSES, mp_context=get_context("fork"), initializer=_begin_worker) as pool:
        try:
            # Releases that follow one another share most files, and a process reads each of these once. Later ones are
            # larger, so the first process takes more of them.
            share = max(1, round(len(lock) * _FIRST_SHARE))
            check = partial(_check_release, project, hooks, cache, KeptChecks(project))
            checks = pool.map(check, lock.values(), chunksize=share)
            checked = dict(zip(lock, checks, strict=True))
        except BrokenProcessPool:
            raise OverlayError(
                "A process that reads releases was killed.",
                hint="If memory ran out, the system's log says so. Run this again: it goes on where it was.",
            ) from None
        except BaseException:
            for worker in active_children():  # else the pool would wait for what they are at
                worker.kill()
            raise
    stages: dict[str, list[Cell]] = {}
    inputs = Inputs(project, hooks, python)
    for version, release in lock.items():
        stages[version] = [
            _stage_cell(results.get((version, stage)), stage in required[version], inputs, release) for stage in columns
        ]
    tables = [
        StatusTable(
            name="Hooks",
            about="Does each hook apply, exactly, and where: at the lines that its diff names, or offset from them?",
            columns=[hook.name for hook in hooks],
            rows={version: cells for version, (cells, _, _) in checked.items()},
        ),
        StatusTable(
            name="Stages",
            about="What did the tests say of the wheels that this checkout builds?",
            columns=columns,
            rows=stages,
        ),
        StatusTable(
            name="Contract and base mentions",
            about="Does all that the overlay imports, overrides and calls still fit upstream, and is every place where "
            "upstream mentions a base accounted for?",
            columns=["contract", "base mentions"],
            rows={version: cells for version, (_, cells, _) in checked.items()},
        ),
        StatusTable(
            name="Overlay and requirements",
            about="Which files of the overlay does not every release take, and what do releases require other than "
            "upstream says?",
            columns=COLUMNS if project.files or project.dependencies else (),
            rows={version: cells for version, (_, _, cells) in checked.items()},
        ),
    ]
    try:
        commit = commit_of(project.root)
    except OverlayError:
        commit = ""
    shown = [table for table in tables if table.columns]
    distances = measure_hooks(project.root, hooks, list(lock), date.today())
    return Status(commit=commit, default=project.default, releases=list(lock), tables=shown, hooks=distances)


def _check_release(project: Project, hooks: Sequence[Hook], cache: Path, kept: KeptChecks, release: Release) -> Cells:
    """Return the cells of a release's hooks, those of its contract and base mentions, and those of `COLUMNS`."""
    if found := kept.find(release):
        return found
    try:
        with open_source_tree(release, cache) as sources:
            checks = [
                _cell_or_error(project, "not checked", _contract_cell, project, sources),
                _cell_or_error(project, "not checked", _base_mentions_cell, project, sources),
            ]
            required = _cell_or_error(project, "cannot be changed", requirements_cell, project, release, sources)
            checked = list(_hook_cells(project, hooks, sources)), checks, [files_cell(project, release), required]
    except OverlayError as error:
        cell = _error_cell(project, "no sources", error)
        return [cell] * len(hooks), [cell, cell], [cell] * len(COLUMNS)
    kept.keep(release, checked)
    return checked


def _hook_cells(project: Project, hooks: Sequence[Hook], sources: SourceTree) -> Iterator[Cell]:
    """Yield a cell for each hook, applied to the release with those before it that apply."""
    changed: dict[str, bytes | None] = {}
    for hook in hooks:
        read = partial(_read, changed, sources)
        try:
            patch = hook.variant(sources.version)
            if patch is None:
                yield Cell(state=State.NEUTRAL, word="not due")
                continue
            changed = changed | apply_series([patch], read, f"sglang {sources.version}")
            yield _applied_cell(patch, read)
        except OverlayError as error:
            yield _error_cell(project, "fails", error)


def _read(changed: Mapping[str, bytes | None], sources: SourceTree, name: str) -> bytes | None:
    return changed[name] if name in changed else sources.read(name)


def _applied_cell(patch: Patch, read: Callable[[str], bytes | None]) -> Cell:
    """Return the cell of a patch that applies to the files that `read` gives."""
    found = []
    for file in patch.files:
        lines = split_lines(read(source_of(file)) or b"")
        found += [(source_of(file), find_hunk(lines, hunk)[0] + 1, hunk.source_start) for hunk in file]
    offsets = sorted({line - stated for _, line, stated in found})
    word = "exact"
    if any(offsets):
        word = f"offset {' to '.join(f'{offset:+}' for offset in dict.fromkeys((offsets[0], offsets[-1])))}"
    where = [f"{name}:{line}" + f", offset {line - stated:+}" * (line != stated) for name, line, stated in found]
    whole = [source_of(file) for file in patch.files if not len(file)]
    at = f"line {found[0][1]}" if len(found) == 1 else f"{len(found)} hunks in {len(patch.files)} file"
    at = at if found else "whole file"
    return Cell(
        state=State.GREEN,
        word=word,
        notes=[f"+{patch.added}/-{patch.removed}", at + "s" * (len(patch.files) > 1)],
        names=[*where, *whole],
    )


def _stage_cell(result: Result | None, required: bool, inputs: Inputs, release: Release) -> Cell:
    """Return the cell of a stage, green if all of it passed on the `inputs` that the checkout has."""
    due = State.OPEN if required else State.NEUTRAL  # what is not required, `matrix` does not run
    if result is None:
        return Cell(state=due, word="not run")
    figures = ((result.failed, "failed"), (result.passed, "passed"))
    counts = [f"{count} {what}" for count, what in figures if count] or ["no test ran"]
    commit = result.commit[:7] + "+" * result.commit.endswith("+")
    when = [f"{result.seconds:.0f} s", result.date[:10], commit]
    left_out = [f"left out: {model}" for model in result.left_out]
    when += [f"{len(left_out)} model{'s' * (len(left_out) > 1)} left out"] * bool(left_out)
    ran = f"{', '.join(counts)} on {result.date}, at {result.commit}, with Python {result.python} on {result.machine}"
    ran += f", {result.installed}" * bool(result.installed)
    skipped = [f"skipped: {reason}" for reason in result.skipped]
    if differences := inputs.differences(result, release):
        before = "passed before" if result.green else "failed before" if result.failed else "incomplete before"
        problems = [f"{ran}; {'; '.join(differences)}.", *skipped]
        return Cell(state=due, word=before, notes=when, names=left_out, problems=problems)
    if result.green:
        return Cell(state=State.GREEN, word=counts[0], notes=when, names=left_out)
    if skipped and not result.failed:
        counts.insert(0, f"skipped for {len(skipped)} reason{'s' * (len(skipped) > 1)}")
    outcome = State.RED if result.failed else State.OPEN
    notes = [*counts[1:], *when]
    return Cell(state=outcome, word=counts[0], notes=notes, names=left_out, problems=[f"{ran}.", *skipped])


def _contract_cell(project: Project, sources: SourceTree) -> Cell:
    findings = check_contract(project, sources)
    changed = [_finding_line(finding, "") for finding in findings if finding.problem and not finding.waived]
    waived = [_finding_line(finding, f"; waived: {finding.waived}") for finding in findings if finding.waived]
    fit = f"{sum(not finding.problem for finding in findings)} fit"
    return _count_cell(changed, "changed", fit, waived, waived)


def _base_mentions_cell(project: Project, sources: SourceTree) -> Cell:
    mentions = find_base_mentions(project, sources)
    new = [_mention_line(mention, "") for mention in mentions if not mention.classified]
    handled = [_mention_line(mention, f": {mention.handled}") for mention in mentions if mention.handled]
    waived = [_mention_line(mention, f": waived: {mention.waived}") for mention in mentions if mention.waived]
    return _count_cell(new, "unclassified", f"{len(handled)} handled", waived, [*handled, *waived])


def _count_cell(bad: Sequence[str], what: str, good: str, waived: Sequence[str], names: Sequence[str]) -> Cell:
    """Return a cell of counts, red if there is anything `bad`."""
    notes = [f"{len(waived)} waived"] * bool(waived)
    if bad:
        return Cell(state=State.RED, word=f"{len(bad)} {what}", notes=[good, *notes], names=names, problems=bad)
    return Cell(state=State.GREEN, word=good, notes=notes, names=names)


def _finding_line(finding: Finding, suffix: str) -> str:
    return f"{finding.where}: {finding.kind} of {finding.what}: {finding.problem}{suffix}"


def _mention_line(mention: BaseMention, suffix: str) -> str:
    return f"{mention.file}:{mention.line}, {mention.scope}: {mention.what}{suffix}"


def _cell_or_error(project: Project, word: str, make: Callable[..., Cell], *arguments: object) -> Cell:
    try:
        return make(*arguments)
    except OverlayError as error:
        return _error_cell(project, word, error)


def _error_cell(project: Project, word: str, error: OverlayError) -> Cell:
    """Return the red cell of an error, with paths relative to the project, as they are in any checkout."""
    problems = [problem.replace(f"{project.root}/", "") for problem in (*error.problems, error.hint) if problem]
    return Cell(state=State.RED, word=word, problems=problems)
