"""Every locked release, from its sources alone: the overlay fits it, and each mention of a base is classified."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from overlay_tools.api_check import base_mentions, contract
from overlay_tools.api_check.base_mentions import BaseMention, find_base_mentions
from overlay_tools.api_check.contract import Finding, check_contract
from overlay_tools.api_check.contract_file import KINDS
from overlay_tools.settings import cache_dir, load_project
from overlay_tools.upstream.lockfile import load_lock
from overlay_tools.upstream.source_tree import open_source_tree

ROOT = Path(__file__).parents[2]
LOCK = load_lock(ROOT / "upstream.lock")
PROJECT = load_project(ROOT)


EXCEPTION = (
    "[tool.sglang-overlay.files] in pyproject.toml says which releases take a file; a line of `waivers` in"
    " ci/contract.toml, with its reason, is for what does no harm."
)


def fail_with(lines: list[str], hint: str) -> None:
    """Fail with all that was found, which pytest would cut short."""
    if lines:
        pytest.fail("\n".join([f"{len(lines)} found:", *lines, hint]), pytrace=False)


@cache
def check(version: str) -> tuple[list[Finding], list[BaseMention]]:
    with open_source_tree(LOCK[version], cache_dir()) as sources:
        return check_contract(PROJECT, sources), find_base_mentions(PROJECT, sources)


@pytest.mark.parametrize("version", LOCK)
def test_the_overlay_fits(version: str) -> None:
    findings, _ = check(version)
    fail_with(contract.unfit(findings), EXCEPTION)
    kinds = {finding.kind for finding in findings if not finding.problem}
    assert kinds == set(KINDS)


@pytest.mark.parametrize("version", LOCK)
def test_each_mention_of_a_base_is_classified(version: str) -> None:
    _, mentions = check(version)
    fail_with(
        [f"{m.file}:{m.line}: {m.scope}: {m.what}" for m in mentions if not m.classified],
        "See whether each is right for a model that is derived from this base; if so, list it in ci/contract.toml.",
    )
    expected = {
        "string 'Qwen3NextForCausalLM' compared with self.hf_config.architectures[0]",
        "isinstance Qwen3NextConfig",
    }
    assert expected <= {mention.what for mention in mentions}


def test_no_entry_of_the_contract_is_left_over() -> None:
    every = [check(version) for version in LOCK]
    findings = [finding for found, _ in every for finding in found]
    mentions = [mention for _, found in every for mention in found]
    assert contract.unused_waivers(PROJECT, findings) + base_mentions.unused_mentions(PROJECT, mentions) == []
