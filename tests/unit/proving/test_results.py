from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from overlay_tools.errors import OverlayError
from overlay_tools.proving.results import Result, commit_of, load_results, save_results
from overlay_tools.subprocesses import run

from unit.conftest import Miniature

GREEN = Result(
    release="1.0",
    stage="engine",
    passed=3,
    failed=0,
    skipped=[],
    seconds=1.5,
    python="3.11.2",
    machine="x86_64",
    date="2026-11-23T18:44Z",
    commit="895de74d1234",
    inputs={"overlay": "0123456789ab", "revision": "3"},
)


def committed(mini: Miniature) -> Callable[..., None]:
    """Make the project a git checkout with one commit; return what runs git there."""

    def git(*words: str) -> None:
        who = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        run(["git", *words], cwd=mini.root, env={**who, "GIT_CONFIG_GLOBAL": os.devnull})

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message=first")
    return git


def test_only_a_stage_that_ran_whole_and_passed_is_green() -> None:
    assert GREEN.green
    for change in ({"passed": 0}, {"failed": 1}, {"skipped": ["no GPU"]}):
        assert not replace(GREEN, **change).green


def test_results_come_back_as_they_were_saved_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert load_results(path) == {}
    several = [GREEN, replace(GREEN, stage="gpu", skipped=["größer"]), replace(GREEN, release="0.9", failed=2)]
    save_results(path, several)
    first = path.read_bytes()
    assert list(load_results(path).values()) == [several[2], several[0], several[1]]
    save_results(path, reversed(several))
    assert path.read_bytes() == first
    assert [item.name for item in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[0].pop("inputs"),
        lambda rows: rows[0].update(colour="green"),
        lambda rows: rows[0].update(passed="3"),
        lambda rows: rows[0].update(failed=True),
        lambda rows: rows[0].update(seconds=None),
        lambda rows: rows[0].update(skipped="no GPU"),
        lambda rows: rows[0].update(skipped=[3]),
        lambda rows: rows[0].update(inputs=["overlay"]),
        lambda rows: rows[0].update(inputs={"revision": 3}),
        lambda rows: rows.append(rows[0]),
        lambda rows: rows.append("a result"),
    ],
)
def test_a_file_that_holds_something_else_is_one_error(tmp_path: Path, change: Callable[[Any], object]) -> None:
    path = tmp_path / "results.json"
    save_results(path, [GREEN])
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))
    with pytest.raises(OverlayError, match=r"results\.json") as caught:
        load_results(path)
    assert "nox -s matrix" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"<<<<<<< ours\n", b"\xff\xfe", b"3", None])
def test_a_file_that_is_not_json_is_one_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "results.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(OverlayError, match=r"results\.json(:1)?(: | cannot be read as results)"):
        load_results(path)


def test_a_result_of_an_older_tool_has_no_inputs(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    save_results(path, [GREEN])
    rows = json.loads(path.read_text())
    del rows[0]["installed"]
    rows[0]["inputs"] = "0123456789abcdef"
    path.write_text(json.dumps(rows))
    assert list(load_results(path).values()) == [replace(GREEN, inputs={})]


def test_the_commit_says_whether_there_are_changes_but_for_results(mini: Miniature) -> None:
    git = committed(mini)
    clean = commit_of(mini.root)
    assert len(clean) == 12
    mini.write("ci/results.json", "[]")
    assert commit_of(mini.root) == clean
    git("add", "ci/results.json")
    assert commit_of(mini.root) == clean
    mini.write("overlay/sglang/models/ours.py", "OURS = 2\n")
    assert commit_of(mini.root) == f"{clean}+"
    git("commit", "--quiet", "--all", "--message=second")
    assert commit_of(mini.root).rstrip("+") == commit_of(mini.root) != clean
    mini.write("overlay/sglang/models/more.py", "")
    assert commit_of(mini.root).endswith("+")


def test_there_is_no_commit_without_a_checkout_of_its_own(mini: Miniature) -> None:
    with pytest.raises(OverlayError, match="is not a git checkout with a commit"):
        commit_of(mini.root)
    committed(mini)
    with pytest.raises(OverlayError, match="is not a git checkout with a commit"):
        commit_of(mini.root / "overlay")
