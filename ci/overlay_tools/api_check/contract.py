"""The contract with upstream: what the overlay, its rows and its hooks need of a release, and what that lacks.

Where a place does not fit and need not, ci/contract.toml waives it with a reason.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from overlay_tools.api_check.added_code import hook_references
from overlay_tools.api_check.fixup_rows import fixup_references
from overlay_tools.api_check.references import overlay_references
from overlay_tools.api_check.registry_rows import name_collisions, registry_references
from overlay_tools.api_check.resolver import NameResolver, read_overlay
from overlay_tools.settings import Project
from overlay_tools.upstream.source_tree import SourceTree

if sys.version_info >= (3, 11):
    pass
else:
    pass
from overlay_tools.api_check.contract_file import Entry, contract_path, load_contract


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One place of the overlay that needs something of a release.

    `where`: file and line; `kind`: one of KINDS; `what`: the place in words that outlive a moved line; `problem`: what
    changed, empty if it fits; `waived`: the reason why that may be, or empty.
    """

    release: str
    where: str
    kind: str
    what: str
    problem: str = ""
    waived: str = ""


def check_contract(project: Project, sources: SourceTree) -> list[Finding]:
    """Check the overlay, its tables and the hooks against one release, and return every place, also those that fit.

    Raises ContractError if ci/contract.toml or the overlay cannot be read, PatchError if patches/ cannot.
    """
    contract = load_contract(contract_path(project))
    resolver = NameResolver(sources, read_overlay(project.overlay))
    found = [
        *overlay_references(resolver),
        *registry_references(project, resolver),
        *name_collisions(project, resolver),
        *fixup_references(project, resolver),
        *hook_references(project, resolver),
    ]
    findings = []
    for use in found:
        finding = Finding(release=sources.version, where=use.where, kind=use.kind, what=use.what, problem=use.problem)
        waivers = (entry for entry in contract.waivers if use.problem and _waives(entry, finding))
        waiver = next(waivers, None)
        findings.append(replace(finding, waived=waiver.reason) if waiver else finding)
    return findings


def unused_waivers(project: Project, findings: Sequence[Finding]) -> list[str]:
    """Return a line for each waiver that nothing among the findings of all locked releases needs."""
    contract = load_contract(contract_path(project))
    return [
        f"{contract.path}:{entry.line}: the waiver of {' or '.join(entry.patterns['what'])} waives nothing."
        for entry in contract.waivers
        if not any(finding.problem and _waives(entry, finding) for finding in findings)
    ]


def _waives(entry: Entry, finding: Finding) -> bool:
    return entry.fits(finding.release, kind=finding.kind, what=finding.what, problem=finding.problem)
