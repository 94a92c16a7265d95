"""A release tried with what patches/ is to hold: first its contract, then its wheel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from overlay_tools import console
from overlay_tools.api_check.base_mentions import find_base_mentions
from overlay_tools.api_check.contract import check_contract
from overlay_tools.errors import REPORT, VerifyError
from overlay_tools.patches.model import Hook
from overlay_tools.settings import Project
from overlay_tools.upstream.download import fetch
from overlay_tools.upstream.lockfile import Release
from overlay_tools.upstream.source_tree import SourceTree, source_wheel
from overlay_tools.wheels.builder import build_sglang
from overlay_tools.wheels.verify import verify_wheel


def broken_contract(project: Project, sources: SourceTree) -> list[str]:
    """Return what of the contract does not hold and which base mentions are new, a line each; show the counts."""
    findings, mentions = check_contract(project, sources), find_base_mentions(project, sources)
    changed = [finding for finding in findings if finding.problem and not finding.waived]
    unknown = [mention for mention in mentions if not mention.classified]
    waived = sum(bool(finding.problem) for finding in findings) - len(changed)
    console.line(f"contract: {len(findings) - len(changed) - waived} fit, {waived} waived, {len(changed)} changed")
    console.line(f"base mentions: {len(mentions) - len(unknown)} classified, {len(unknown)} new")
    return [f"{f.where}: {f.kind} {f.what}: {f.problem}." for f in changed] + [
        f"{m.file}:{m.line}: {m.what} in {m.scope} is not classified." for m in unknown
    ]


def build_and_verify(project: Project, release: Release, hooks: Sequence[Hook], cache: Path) -> None:
    """Build a release's wheel and compare it with its manifest.

    Raises BuildError if it cannot be built, VerifyError if it differs.
    """
    wheel = source_wheel(release)
    built = build_sglang(project, release, wheel, fetch(release, wheel, cache), hooks)
    if differences := verify_wheel(built.path).differences:
        raise VerifyError(*differences, hint=REPORT)
