"""Which releases take the files of overlay/ that an export adds or changes, and which of these they do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

from packaging.specifiers import SpecifierSet

from overlay_tools.api_check.contract import check_contract
from overlay_tools.downstream.export_plan import name_ranges
from overlay_tools.downstream.settings_file import with_ranges
from overlay_tools.downstream.staging import staged_project
from overlay_tools.errors import WorktreeError
from overlay_tools.settings import Project
from overlay_tools.upstream.source_tree import SourceTree
from overlay_tools.user_files import decode
from overlay_tools.wheels.overlay_files import names_of


@dataclass(frozen=True, kw_only=True, slots=True)
class OverlayPlan:
    """What becomes of the overlay's files.

    `rows`: of each file, releases and what happens there; `misfits`: the files that some releases take although they do
    not fit there.
    """

    rows: list[tuple[str, str, str]]
    misfits: list[str]


def left_behind(project: Project, old: str, new: str) -> list[str]:
    """Return which files of overlay/ one release takes and another does not, a sentence for each range."""
    return [
        f"overlay/{row.pattern} is for sglang {row.releases} alone, as {PurePath(row.where).name} says."
        for row in project.files
        if row.releases.contains(old, prereleases=True) and not row.releases.contains(new, prereleases=True)
    ]


def files_to_write(
    project: Project, overlay: Mapping[str, bytes | None], version: str, wanted: SpecifierSet | None
) -> dict[str, bytes | None]:
    """Return the files of the checkout that change with some of overlay/, which are given by path in a wheel.

    Among them is pyproject.toml, if new files are to go to the releases that are `wanted` alone, or a file is gone that
    had a range of its own.
    Raises WorktreeError if the release `version`, of whose worktree they are, would not take a new file.
    """
    new = _new_files(project, overlay)
    if new and wanted is not None and not wanted.contains(version, prereleases=True):
        raise WorktreeError(
            *(f"overlay/{name} is new in sglang {version}, which is outside --releases." for name in new),
            hint=f"A file goes to one range of releases: let --releases hold {version} too, or export the file first.",
        )
    ranges = {} if wanted is None else dict.fromkeys(new, str(wanted))
    if elsewhere := [name for name in new if name not in ranges and not project.takes(version, name)]:
        rows = {name: row for name in elsewhere for row in project.files if row.matches(name)}
        raise WorktreeError(
            *(f"{row.where}: {name} goes to {row.releases} alone, not to {version}." for name, row in rows.items()),
            hint="Change this line, or say with --releases which releases take the file.",
        )
    files = {f"overlay/{name}": data for name, data in overlay.items()}
    every = {*names_of(project.overlay), *overlay} - {name for name, data in overlay.items() if data is None}
    text = decode(project.settings.read_bytes(), project.settings)  # with the line ends that it has
    if (changed := with_ranges(text, ranges, every)) != text:
        files[project.settings.name] = changed.encode()
    return files


def plan_overlay(
    project: Project,
    patches: Mapping[str, str],
    files: Mapping[str, bytes | None],
    sources: Mapping[str, SourceTree],
    overlay: Mapping[str, bytes | None],
) -> OverlayPlan:
    """Find which releases take changed files of overlay/, and which of these releases the overlay does not fit then.

    Parameters: `patches`, what patches/ is to hold; `files`, what changes beside it; `sources`, the locked releases;
    `overlay`, the files of overlay/ among it, by path in a wheel.
    """
    new, gone = _new_files(project, overlay), [name for name, data in overlay.items() if data is None]
    outcomes: dict[tuple[str, str], list[str]] = {}
    misfits: dict[str, None] = {}
    with staged_project(project, patches, list(sources), files) as staged:
        for version, tree in sources.items():
            said = {name: ["is removed"] for name in gone if project.takes(version, name)}
            for name in new:
                taken = staged.project.takes(version, name)
                said[name] = ["is added" if taken else "not added: outside the range of releases"]
            found = {f"overlay/{name}": outcome for name, outcome in said.items()}
            problems = _problems(staged.project, tree)
            known = _problems(project, tree) if problems else {}
            for where, those in problems.items():
                if broken := [problem for problem in those if problem not in known.get(where, ())]:
                    misfits[where], found[where] = None, broken
            for where, each in found.items():
                for outcome in each:
                    outcomes.setdefault((where, outcome), []).append(version)
    rows = [(name, name_ranges(some, list(sources)), outcome) for (name, outcome), some in outcomes.items()]
    return OverlayPlan(rows=rows, misfits=list(misfits))


def _new_files(project: Project, overlay: Mapping[str, bytes | None]) -> list[str]:
    return [name for name, data in overlay.items() if data is not None and not (project.overlay / name).is_file()]


def _problems(project: Project, sources: SourceTree) -> dict[str, list[str]]:
    """Return by a file's path why it does not fit a release: upstream has one of its name, or lacks what it needs."""
    taken = {name for name in names_of(project.overlay) if project.takes(sources.version, name)}
    found = {
        f"overlay/{name}": ["upstream has a file of this name, so no wheel can be built"]
        for name in sorted(taken - project.replaces)
        if sources.read(name) is not None
    }
    for finding in check_contract(project, sources):
        if finding.problem and not finding.waived:
            problem = f"{finding.kind} {finding.what}: {finding.problem}"
            found.setdefault(finding.where.rpartition(":")[0] or finding.where, []).append(problem)
    return found
