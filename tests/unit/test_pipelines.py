"""The pipeline definitions call what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from unit.conftest import REPOSITORY

FILES = [
    *sorted((REPOSITORY / "ci" / "pipelines").glob("*.yml")),
    REPOSITORY / ".ci" / "run",
    REPOSITORY / "README.md",
]


@pytest.fixture(scope="module")
def sessions() -> set[str]:
    listed = subprocess.run(
        [sys.executable, "-m", "nox", "--list"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return set(re.findall(r"^[-*] (\S+)", listed.stdout, re.MULTILINE))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_session_that_is_named_exists(path: Path, sessions: set[str]) -> None:
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"nox -s \"?([a-z][a-z0-9.-]*[a-z0-9])\b(?!-[$<])", text))
    versions = re.findall(r"\"(0\.5\.[0-9a-z.]+)\"", text)
    to_be_locked = {f"test-{version}" for version in re.findall(r"nox -s (?:lock|port) -- (\S+)", text)}
    assert (named | {f"test-{version}" for version in versions}) - to_be_locked <= sessions
    assert named or ".ci/run" in text


def test_there_is_a_session_for_every_locked_release(sessions: set[str]) -> None:
    locked = re.findall(r'^\[release\."(.+)"\]$', (REPOSITORY / "upstream.lock").read_text(), re.MULTILINE)
    assert len(locked) >= 17
    assert {f"test-{version}" for version in locked} <= sessions


def test_nothing_is_kept_in_the_environment_of_a_session(sessions: set[str]) -> None:
    # nox removes an environment, with all that lies in it, when it makes it anew.
    tool = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "ci" / "overlay_tools").rglob("*.py"))
    kept = set(re.findall(r"\"\.nox\"(?: / |, )\"([^\"]+)\"|\.nox/([\w.-]+)\"", tool))
    folders = {either or other for either, other in kept}
    assert {"worktrees", "porting", "releases", "engines"} <= folders
    assert folders.isdisjoint(sessions)


@pytest.mark.parametrize("path", [*FILES[:-2], REPOSITORY / ".pre-commit-config.yaml"], ids=lambda path: path.name)
def test_the_definitions_are_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)
