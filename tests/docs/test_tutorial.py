"""The model that overlay/README.md derives: what `new` writes and a few lines by hand, and no file of others."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from overlay_tools.api_check.base_mentions import find_base_mentions
from overlay_tools.api_check.contract import Finding, check_contract, unfit
from overlay_tools.scaffold.base import Base
from overlay_tools.scaffold.model import NewModel, make_model
from overlay_tools.settings import Project, cache_dir, load_project
from overlay_tools.upstream.lockfile import load_lock
from overlay_tools.upstream.source_tree import open_source_tree

from docs.pages import ROOT, diff

NAME = "my_next"
BY_HAND = diff("overlay/README.md")
LOCK = load_lock(ROOT / "upstream.lock")
BASE = Base(
    architecture="Qwen3NextForCausalLM",
    module="sglang.srt.models.qwen3_next",
    absent=(),
    config="Qwen3NextConfig",
    backbone="Qwen3NextModel",
    classifier=None,
    more=(),
    fixed={},
    layer_kinds=(),
    tiny={},
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Copy what the overlay is built and checked with, make the model there, and change the page's lines by hand."""
    root = tmp_path_factory.mktemp("tutorial") / "checkout"
    for name in ("overlay", "patches", "ci", "tests/models"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "upstream.lock", "LICENSE", "NOTICE"):
        shutil.copyfile(ROOT / name, root / name)
    project = load_project(root)
    make_model(project, NewModel(name=NAME, kind="derived", base=BASE), Path(sys.executable))
    subprocess.run(["git", "apply", "-"], cwd=root, input=BY_HAND, text=True, check=True)
    return project


def files(root: Path) -> dict[str, bytes]:
    """Read the files of a checkout that a model may have, by their paths."""
    every = (path for name in ("overlay", "ci", "patches", "tests/models") for path in (root / name).rglob("*"))
    found = {path for path in every if path.is_file() and "__pycache__" not in path.parts}
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in {*found, root / "pyproject.toml"}}


def of_the_model(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if NAME in finding.where]


def test_it_takes_few_lines() -> None:
    added = [line for line in BY_HAND.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert 0 < len(added) <= 25


def test_no_file_of_others_changes(checkout: Project) -> None:
    before, after = files(ROOT), files(checkout.root)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed
    assert [name for name in changed if NAME not in name] == []


@pytest.mark.parametrize("version", LOCK)
def test_it_fits_without_a_waiver(checkout: Project, version: str) -> None:
    with open_source_tree(LOCK[version], cache_dir()) as sources:
        findings = check_contract(checkout, sources)
        mentions = find_base_mentions(checkout, sources)
    assert of_the_model(findings)
    assert [finding for finding in of_the_model(findings) if finding.waived] == []
    assert unfit(findings) == []
    assert [mention for mention in mentions if not mention.classified] == []


def test_ruff_finds_nothing(checkout: Project) -> None:
    for words in (("check",), ("format", "--check")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--no-cache", "."],
            cwd=checkout.root,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
