"""The pages are short, whole and true: languages, links, sessions and arguments."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import PurePosixPath

import pytest
from docs.pages import LANGUAGES, ROOT, anchors, code_spans, command_blocks, links, pages, rows, tokens
from overlay_tools.settings import load_project


@pytest.fixture(scope="module")
def sessions() -> set[str]:
    """Return the names of all nox sessions."""
    words = [sys.executable, "-m", "nox", "--list"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^[*-] (\S+)", listed, re.MULTILINE))


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_wheels_are_named_as_they_are_built() -> None:
    project = load_project(ROOT)
    named = re.compile(r"(?:\+overlay\.|\+cpu\.|_plugin-)(\d+)")
    found = {
        page: set(named.findall((ROOT / page).read_text(encoding="utf-8")))
        for page in pages()
        if page.endswith("README.md")
    }
    assert found["README.md"]
    assert found["overlay/README.md"]
    revision = str(project.revision)
    assert {page: numbers - {revision} for page, numbers in found.items() if numbers - {revision}} == {}
    assert f"sglang-{project.default}+overlay.{revision}-" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", pages())
def test_a_block_says_what_it_is(page: str) -> None:
    blocks = [token for token in tokens(page) if token.type in ("fence", "code_block")]
    assert [token.map for token in blocks if token.info not in LANGUAGES] == []


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: str) -> None:
    for link in links(page):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.resolve().relative_to(ROOT).as_posix()), link


@pytest.mark.parametrize("page", pages())
def test_sessions_that_are_named_exist(page: str, sessions: set[str]) -> None:
    every = [*code_spans(page), *(command for block in command_blocks(page) for command in block.commands)]
    named = [name for text in every for name in re.findall(r"nox -s ([\w.-]+)", text)]
    known = {name.replace("VERSION", "0.5.23").replace("0.5.24", "0.5.23") for name in named}
    assert known - sessions == set()


def test_every_session_is_explained(sessions: set[str]) -> None:
    explained = {name for row in rows("ci/README.md", "Commands") for name in re.findall(r"`([\w-]+)`", row[0])}
    assert {re.sub(r"\d[\w.]*$", "VERSION", name) for name in sessions} == explained


def test_folders_that_are_listed_are_there() -> None:
    for page, heading in (("README.md", "Where things are"), ("tests/README.md", "Tests")):
        for row in rows(page, heading):
            name = row[0].strip("`")
            assert ((ROOT / page).parent / PurePosixPath(name)).exists(), name
