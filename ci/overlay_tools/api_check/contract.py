"""The contract with upstream: what the overlay, its tables and its hooks need of a release, and what the release lacks.

A problem that does no harm is waived, with a reason, in ci/contract.toml.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from overlay_tools.api_check.contract_file import KINDS, Entry, contract_path, load_contract
from overlay_tools.api_check.fixup_rows import fixup_references
from overlay_tools.api_check.hook_code import apply_hooks, hook_references
from overlay_tools.api_check.overlay_code import read_overlay
from overlay_tools.api_check.references import Reference, overlay_references
from overlay_tools.api_check.registry_rows import name_collisions, registry_references
from overlay_tools.api_check.resolver import NameResolver
from overlay_tools.api_check.upstream_imports import replaced_references
from overlay_tools.settings import Project
from overlay_tools.upstream.source_tree import SourceTree


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One place that needs something of a release.

    `where`: file and line; `kind`: one of KINDS; `what`: what it needs, in words that stay the same when lines move;
    `problem`: what changed, empty if it fits; `waived`: the reason why that may be, or empty.
    """

    release: str
    where: str
    kind: str
    what: str
    problem: str = ""
    waived: str = ""


def check_contract(project: Project, sources: SourceTree) -> list[Finding]:
    """Check the overlay, its tables and the hooks against one release; return every place, also those that fit.

    They are checked against the release as all hooks together make it.
    Raises ContractError if ci/contract.toml or the overlay cannot be read, PatchError if patches/ cannot or a hook does
    not apply.
    """
    return judge(project, sources.version, find_references(project, sources).references)


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundReferences:
    """All that is needed of a release, and the resolver that finds what a name means there, with hooks and overlay."""

    references: Sequence[Reference]
    resolver: NameResolver


def find_references(project: Project, sources: SourceTree) -> FoundReferences:
    """Return every place that needs something of a release.

    Raises the same as `check_contract`.
    """
    overlay = read_overlay(project, sources.version)
    hooked = apply_hooks(project, sources)
    resolver = NameResolver(sources.changed(hooked.files), overlay)
    references = [
        *overlay_references(resolver, overlay.files),
        *registry_references(resolver),
        *name_collisions(project, NameResolver(sources, overlay), hooked),
        *fixup_references(project, resolver),
        *hook_references(project, resolver, hooked),
        *replaced_references(resolver),
    ]
    return FoundReferences(references=references, resolver=resolver)


def unfit(findings: Iterable[Finding]) -> list[str]:
    """Return what does not fit and is not waived, each with its place and what to do about it."""
    return [
        f"{finding.where}: {finding.kind} {finding.what}: {finding.problem}.\n    {KINDS[finding.kind]}."
        for finding in findings
        if finding.problem and not finding.waived
    ]


def judge(project: Project, version: str, references: Iterable[Reference]) -> list[Finding]:
    """Return what was found in a release, with the reason where a problem is waived.

    Raises ContractError if ci/contract.toml cannot be read.
    """
    contract = load_contract(contract_path(project))
    findings = []
    for item in references:
        finding = Finding(release=version, where=item.where, kind=item.kind, what=item.what, problem=item.problem)
        waiver = next((entry for entry in contract.waivers if item.problem and _matches(entry, finding)), None)
        findings.append(replace(finding, waived=waiver.reason) if waiver else finding)
    return findings


def unused_waivers(project: Project, findings: Sequence[Finding]) -> list[str]:
    """Return a line for each waiver that matches no problem among the findings of all locked releases."""
    contract = load_contract(contract_path(project))
    return [
        f"{contract.path}:{entry.line}: the waiver of {entry.what} matches nothing in any locked release."
        for entry in contract.waivers
        if not any(finding.problem and _matches(entry, finding) for finding in findings)
    ]


def _matches(entry: Entry, finding: Finding) -> bool:
    return entry.matches(finding.release, kind=finding.kind, what=finding.what, problem=finding.problem)
