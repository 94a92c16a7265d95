"""A plan of an export that breaks the contract of no release: what would break it there is not taken there."""

from __future__ import annotations

from collections.abc import Mapping

from overlay_tools.api_check.contract import Finding, check_contract
from overlay_tools.downstream.export_plan import Exported, ExportPlan
from overlay_tools.downstream.queue import PatchQueue
from overlay_tools.downstream.staging import staged_project
from overlay_tools.settings import Project
from overlay_tools.upstream.source_tree import SourceTree
from overlay_tools.user_files import read_text


def make_plan(
    project: Project,
    exported: Exported,
    sources: Mapping[str, SourceTree],
    others: Mapping[str, bytes | None],
) -> tuple[ExportPlan, list[str]]:
    """Plan an export, and check it against the contract of each release that takes a new or changed hook.

    Parameters: `others`, the files of the checkout beside patches/ that change with it, by path.
    Returns the plan, and what of the contract it would break of the release that the hooks were made on, a line each.
    What is broken without the new and changed hooks too is not their fault.
    """
    barred: dict[tuple[str, str], str] = {}
    held: dict[str, list[str]] = {}  # by release, the new and changed hooks with which its contract holds
    series = read_text(project.patches / "series")
    broken: list[str] = []
    until_now = PatchQueue(exported.hooks, list(sources)).files(series)
    while True:
        plan = ExportPlan(exported, sources, barred)
        taking = {v: names for v in sources if (names := plan.taken_by(v)) and held.get(v) != names}
        found: dict[tuple[str, str], str] = {}
        with staged_project(project, plan.files(), list(sources), others) as staged:
            for version, names in taking.items():
                problems = _problems(staged.project, sources[version])
                if problems:
                    with staged_project(project, until_now, list(sources), others) as before:
                        known = {_what(finding) for finding in _problems(before.project, sources[version])}
                    problems = [finding for finding in problems if _what(finding) not in known]
                held[version] = names
                if version == exported.version:
                    broken = [_say(finding) for finding in problems]
                    continue
                for finding in problems:
                    to_blame = [name for name in names if finding.where.startswith(f"patches/{name}/")] or names
                    found |= {(name, version): f"{finding.what}: {finding.problem}" for name in to_blame}
        if not found:
            return plan, broken
        barred |= found


def _problems(project: Project, sources: SourceTree) -> list[Finding]:
    """Return what of the contract does not hold."""
    return [finding for finding in check_contract(project, sources) if finding.problem and not finding.waived]


def _what(finding: Finding) -> tuple[str, str, str]:
    return finding.kind, finding.what, finding.problem


def _say(finding: Finding) -> str:
    return f"{finding.where}: {finding.kind} {finding.what}: {finding.problem}."
