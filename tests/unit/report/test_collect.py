from __future__ import annotations

import json
import os
import platform
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from overlay_tools import cli
from overlay_tools.api_check.base_mentions import BaseMention
from overlay_tools.api_check.contract import Finding
from overlay_tools.errors import ContractError, OverlayError
from overlay_tools.patches.series import load_series
from overlay_tools.proving.inputs import Inputs
from overlay_tools.proving.results import Result, commit_of, save_results
from overlay_tools.proving.stages import STAGES
from overlay_tools.report import collect
from overlay_tools.report.collect import collect_status
from overlay_tools.report.html import render_page
from overlay_tools.report.model import Cell, State, Status
from overlay_tools.report.terminal import print_status
from overlay_tools.settings import Project
from overlay_tools.upstream.lockfile import THIS_PYTHON
from overlay_tools.upstream.source_tree import SourceTree
from rich.console import Console

from unit.conftest import LOADER, PATCH, Miniature, upstream_files
from unit.proving.test_results import committed

SECOND = """\
Subject: Two hunks
Why: because
Applies: >=1.0
Forwarded: no: ours alone
Remove-When: never

diff --git a/sglang/loader.py b/sglang/loader.py
--- a/sglang/loader.py
+++ b/sglang/loader.py
@@ -1,2 +1,3 @@
 def other():
+    two = 2
     return 1
@@ -10,2 +11,1 @@
 def last():
-    return 3
"""


def status_now(mini: Miniature, *releases: str) -> Status:
    lock = {version: release for version, release in mini.lock.items() if version in (releases or mini.lock)}
    return collect_status(mini.project, lock, load_series(mini.root / "patches"), mini.cache)


def cell_of(status: Status, release: str, column: str) -> Cell:
    return {
        name: cell for table in status.tables for name, cell in zip(table.columns, table.rows[release], strict=True)
    }[column]


def terminal(status: Status, width: int = 200) -> str:
    output = StringIO()
    print_status(status, Console(file=output, width=width, highlight=False))
    return output.getvalue()


def result(mini: Miniature, release: str, stage: str) -> Result:
    """Return a green result for what the files of the project say now."""
    return Result(
        release=release,
        stage=stage,
        passed=38,
        failed=0,
        skipped=[],
        seconds=12.4,
        python=platform.python_version(),
        machine=platform.machine(),
        date="2026-11-23T18:44Z",
        commit="895de74d1234+",
        inputs=Inputs(mini.project, load_series(mini.root / "patches")).parts(mini.lock[release], stage),
        installed="torch 2.0+cpu",
    )


def prove(mini: Miniature, *others: Result) -> None:
    """Write green results of every stage of every release, but for those of `others`."""
    green = {(version, stage): result(mini, version, stage) for version in mini.lock for stage in STAGES}
    mini.project.results.parent.mkdir(exist_ok=True)
    save_results(mini.project.results, {**green, **{(other.release, other.stage): other for other in others}}.values())


@pytest.fixture
def set_checks(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Finding], list[BaseMention]], None]:
    """Return a function that sets the findings and base mentions of every release."""

    def set_checks(findings: list[Finding], mentions: list[BaseMention]) -> None:
        def check_contract(project: Project, sources: SourceTree) -> list[Finding]:
            return [finding for finding in findings if finding.release == sources.version]

        def find_base_mentions(project: Project, sources: SourceTree) -> list[BaseMention]:
            return [mention for mention in mentions if mention.release == sources.version]

        shutil.rmtree(mini.root / ".nox" / "checked", ignore_errors=True)  # it is of the functions as they were
        monkeypatch.setattr(collect, "check_contract", check_contract)
        monkeypatch.setattr(collect, "find_base_mentions", find_base_mentions)

    return set_checks


def test_a_project_whose_stages_have_passed_is_green(mini: Miniature) -> None:
    prove(mini)
    status = status_now(mini)
    assert status.verdict == "2 of 2 releases green"
    assert status.not_green == []
    assert [table.ok for table in status.tables] == [2, 2, 2]
    output = terminal(status)
    assert output.count("✓ exact, +1/-0, line 3") == 2
    assert output.count("✓ 38 passed, 12 s, 2026-11-23, 895de74+") == 8
    assert output.endswith("✓ 2 of 2 releases green\n")


def test_ranges_of_files_and_changed_requirements_have_a_table(mini: Miniature) -> None:
    mini.limit({"sglang/models/ours.py": "==1.0"})
    mini.require("releases = '==1.0'\noverride = ['numpy<2']\n---\nreleases = '==1.1'\nexclude = ['scipy']\n")
    status = status_now(mini)
    assert [table.name for table in status.tables][-1] == "Overlay and requirements"
    files = [cell_of(status, version, "overlay files") for version in ("1.0", "1.1")]
    assert [(cell.state, cell.word, cell.notes, cell.names) for cell in files] == [
        (State.GREEN, "2 taken", [], []),
        (State.GREEN, "1 taken", ["1 left out"], ["sglang/models/ours.py: left out"]),
    ]
    old, new = (cell_of(status, version, "requirements") for version in ("1.0", "1.1"))
    assert (old.state, old.word, old.names) == (State.GREEN, "1 changed", ["numpy<2, where upstream has nothing"])
    assert (new.state, new.problems[0]) == (
        State.RED,
        "pyproject.toml:15: sglang 1.1 does not require scipy, which is to be excluded.",
    )


def test_a_hook_without_lines_is_exact(mini: Miniature) -> None:
    mini.patch.write_text(
        SECOND.partition("diff")[0]
        + "diff --git a/sglang/loader.py b/sglang/loader.py\nold mode 100644\nnew mode 100755\n"
    )
    cell = cell_of(status_now(mini), "1.0", "choose")
    assert (cell.state, cell.word, cell.notes) == (State.GREEN, "exact", ["+0/-0", "whole file"])
    assert cell.names == ["sglang/loader.py"]


def test_a_hook_that_stands_elsewhere_is_offset(mini: Miniature) -> None:
    mini.lock_release("1.1", {**upstream_files("1.1"), "sglang/loader.py": f"\n\n{LOADER}".encode()})
    cell = cell_of(status_now(mini), "1.1", "choose")
    assert (cell.state, cell.word, cell.notes) == (State.GREEN, "offset +2", ["+1/-0", "line 5"])
    assert cell.names == ["sglang/loader.py:5, offset +2"]


def test_a_hook_of_many_hunks_names_each_as_it_stands_after_the_hooks_before(mini: Miniature) -> None:
    mini.write("patches/series", "choose\nsecond\n")
    mini.write("patches/second/1.0.patch", SECOND)
    cell = cell_of(status_now(mini), "1.0", "second")
    assert (cell.word, cell.notes) == ("offset +0 to +1", ["+1/-1", "2 hunks in 1 file"])
    assert cell.names == ["sglang/loader.py:1", "sglang/loader.py:11, offset +1"]


def test_a_hook_that_does_not_apply_says_why_and_the_others_are_still_tried(mini: Miniature) -> None:
    prove(mini)
    changed = LOADER.replace("name = config.name", "name = config.title")
    mini.lock_release("1.1", {**upstream_files("1.1"), "sglang/loader.py": changed.encode()})
    mini.write("patches/series", "choose\nsecond\n")
    mini.write("patches/second/1.0.patch", SECOND)
    status = status_now(mini)
    cell = cell_of(status, "1.1", "choose")
    assert (cell.state, cell.word) == (State.RED, "fails")
    assert cell.problems == [
        "patches/choose/1.0.patch:10: the lines that the hunk expects are not in sglang/loader.py of sglang 1.1.",
        "Hunks apply exactly or not at all: add a variant for this release.",
    ]
    assert cell_of(status, "1.0", "choose").word == "exact"
    assert cell_of(status, "1.1", "second").word == "exact"
    assert status.state("1.1") == State.RED
    assert status.not_green[1].startswith("1.1: choose fails, ")
    assert "✗ choose: patches/choose/1.0.patch:10: the lines that" in terminal(status)


def test_a_hook_may_be_not_due_but_may_not_lack_a_variant(mini: Miniature) -> None:
    mini.patch.write_text(PATCH.replace("<=1.1", "<1.1"))
    mini.write("patches/series", "choose <1.1\n")
    prove(mini)
    status = status_now(mini)
    assert cell_of(status, "1.1", "choose") == Cell(state=State.NEUTRAL, word="not due")
    assert status.verdict == "2 of 2 releases green"
    mini.write("patches/series", "choose\n")
    status = status_now(mini)
    assert cell_of(status, "1.1", "choose").problems[0] == "Hook choose has no variant for sglang 1.1."
    assert cell_of(status, "1.1", "engine").word == "passed before"
    assert status.state("1.0") == State.GREEN


def test_a_stage_that_passed_for_another_state_is_not_green(mini: Miniature) -> None:
    prove(mini)
    mini.write("overlay/sglang/models/ours.py", "OURS = 2\n")
    status = status_now(mini)
    cell = cell_of(status, "1.0", "engine")
    assert (cell.state, cell.word, cell.notes) == (State.OPEN, "passed before", ["12 s", "2026-11-23", "895de74+"])
    ran = "38 passed on 2026-11-23T18:44Z, at 895de74d1234+, with Python"
    ran += f" {platform.python_version()} on {platform.machine()}, torch 2.0+cpu"
    assert cell.problems == [f"{ran}; the files of overlay/ changed."]
    assert status.verdict == "0 of 2 releases green, 2 open"
    assert terminal(status).count("the files of overlay/ changed. (all)") == len(STAGES)


def test_a_stage_that_passed_with_another_python_is_not_green(mini: Miniature) -> None:
    other = "3.10" if THIS_PYTHON != "3.10" else "3.11"
    prove(mini)
    lock, hooks = mini.lock, load_series(mini.root / "patches")
    status = collect_status(mini.project, lock, hooks, mini.cache, other)
    assert cell_of(status, "1.0", "static").word == "38 passed"
    cell = cell_of(status, "1.0", "engine")
    assert (cell.state, cell.word) == (State.OPEN, "passed before")
    assert f"; it was recorded with Python {platform.python_version()}, not {other}." in cell.problems[0]


def test_each_way_that_a_stage_can_end_has_its_own_cell(mini: Miniature) -> None:
    green = result(mini, "1.0", "engine")
    older: dict[str, object] = {"inputs": {**green.inputs, "tests": "of an older state"}}
    for change, state, word, notes, problem in (
        ({"failed": 2}, State.RED, "2 failed", "38 passed", "2 failed, 38 passed on "),
        ({"failed": 2, "passed": 0}, State.RED, "2 failed", "12 s", "2 failed on "),
        ({"failed": 1, "skipped": ["no GPU"]}, State.RED, "1 failed", "38 passed", "skipped: no GPU"),
        ({"skipped": ["no GPU"]}, State.OPEN, "skipped for 1 reason", "38 passed", "skipped: no GPU"),
        ({"skipped": ["a", "b"], "passed": 0}, State.OPEN, "skipped for 2 reasons", "no test ran", "skipped: b"),
        ({"passed": 0}, State.OPEN, "no test ran", "12 s", "no test ran on "),
        ({"failed": 2, **older}, State.OPEN, "failed before", "12 s", "of this stage changed"),
        ({"skipped": ["no GPU"], **older}, State.OPEN, "incomplete before", "12 s", "skipped: no GPU"),
    ):
        prove(mini, replace(green, **change))
        cell = cell_of(status_now(mini, "1.0"), "1.0", "engine")
        assert (cell.state, cell.word, cell.notes[0]) == (state, word, notes)
        assert problem in "\n".join(cell.problems)


def test_a_stage_without_a_result_is_not_run(mini: Miniature) -> None:
    status = status_now(mini)
    assert cell_of(status, "1.0", "static") == Cell(state=State.OPEN, word="not run")
    assert status.verdict == "0 of 2 releases green, 2 open"
    assert status.not_green[0] == f"1.0: {', '.join(f'{stage} not run' for stage in STAGES)}"
    assert "○ engine: not run (all)" in terminal(status)


def test_the_plugin_s_stage_is_required_where_the_settings_name_the_release(mini: Miniature) -> None:
    settings = mini.root / "pyproject.toml"
    settings.write_text(settings.read_text().replace("plugin = []", 'plugin = ["1.1"]'))
    prove(mini)
    status = status_now(mini)
    assert status.tables[1].columns == [*STAGES, "plugin"]
    assert [cell_of(status, version, "plugin").state for version in ("1.0", "1.1")] == [State.NEUTRAL, State.OPEN]
    assert status.not_green == ["1.1: plugin not run"]
    prove(mini, result(mini, "1.1", "plugin"))
    assert status_now(mini).verdict == "2 of 2 releases green"


def test_a_stage_that_only_some_releases_ran_is_not_required_of_the_others(mini: Miniature) -> None:
    prove(mini, result(mini, "1.1", "gpu"), replace(result(mini, "1.0", "old"), release="0.9"))
    status = status_now(mini)
    assert status.tables[1].columns == [*STAGES, "gpu"]
    assert cell_of(status, "1.1", "gpu").word == "38 passed"
    assert cell_of(status, "1.0", "gpu") == Cell(state=State.NEUTRAL, word="not run")
    assert status.verdict == "2 of 2 releases green"
    prove(mini, replace(result(mini, "1.1", "gpu"), failed=1))
    assert status_now(mini).verdict == "1 of 2 releases green, 1 red"


@pytest.mark.parametrize(("failed", "word"), [(0, "passed before"), (1, "failed before")])
def test_a_stage_that_is_not_required_any_more_is_not_due_again(mini: Miniature, failed: int, word: str) -> None:
    old = result(mini, "1.1", "plugin")
    prove(mini, replace(old, failed=failed, inputs={**old.inputs, "tests": "of an older state"}))
    status = status_now(mini)
    cell = cell_of(status, "1.1", "plugin")
    assert (cell.state, cell.word, cell.notes) == (State.NEUTRAL, word, ["12 s", "2026-11-23", "895de74+"])
    assert status.not_green == []


def test_contract_and_base_mentions_count_what_fits_and_list_the_rest(
    mini: Miniature, set_checks: Callable[[list[Finding], list[BaseMention]], None]
) -> None:
    prove(mini)
    finding = Finding(release="1.0", where="overlay/a.py:3", kind="call", what="forward")
    mention = BaseMention(release="1.0", file="sglang/b.py", line=7, scope="B.run", what="'Base'")
    waived = [replace(finding, problem="gone", waived="not used here"), replace(mention, waived="only logs")]
    set_checks([finding, finding, waived[0]], [replace(mention, handled="the base"), waived[1]])  # type: ignore[list-item]
    status = status_now(mini)
    contract, mentions = cell_of(status, "1.0", "contract"), cell_of(status, "1.0", "base mentions")
    assert (contract.state, contract.word, contract.notes) == (State.GREEN, "2 fit", ["1 waived"])
    assert contract.names == ["overlay/a.py:3: call of forward: gone; waived: not used here"]
    assert (mentions.state, mentions.word, mentions.notes) == (State.GREEN, "1 handled", ["1 waived"])
    assert mentions.names == [
        "sglang/b.py:7, B.run: 'Base': the base",
        "sglang/b.py:7, B.run: 'Base': waived: only logs",
    ]
    assert cell_of(status, "1.1", "contract").word == "0 fit"
    set_checks([finding, replace(finding, problem="takes `is_mtp`")], [replace(mention, handled="the base"), mention])
    status = status_now(mini)
    contract, mentions = cell_of(status, "1.0", "contract"), cell_of(status, "1.0", "base mentions")
    assert (contract.state, contract.word, contract.notes) == (State.RED, "1 changed", ["1 fit"])
    assert contract.problems == ["overlay/a.py:3: call of forward: takes `is_mtp`"]
    assert (mentions.state, mentions.word, mentions.notes) == (State.RED, "1 unclassified", ["1 handled"])
    assert mentions.problems == ["sglang/b.py:7, B.run: 'Base'"]
    assert status.verdict == "1 of 2 releases green, 1 red"


def test_sources_are_not_read_again_while_nothing_that_is_checked_changes(mini: Miniature) -> None:
    prove(mini)
    first = status_now(mini)
    shutil.rmtree(mini.cache)
    again = status_now(mini)
    assert terminal(again) == terminal(first)
    assert render_page(again) == render_page(first)
    mini.lock_release("1.1", {**upstream_files("1.1"), "sglang/new.py": b""})
    changed = status_now(mini)
    assert cell_of(changed, "1.0", "contract").state == State.GREEN
    assert cell_of(changed, "1.1", "contract").word == "0 fit"


@pytest.mark.parametrize("name", ["overlay/sglang/models/ours.py", "patches/choose/1.0.patch", "ci/contract.toml"])
def test_sources_are_read_again_once_anything_that_is_checked_changes(mini: Miniature, name: str) -> None:
    status_now(mini)
    shutil.rmtree(mini.cache)
    path = mini.root / name
    before = path.read_text() if path.exists() else None
    mini.write(name, (before or "") + "\n")
    assert cell_of(status_now(mini, "1.0"), "1.0", "contract").word == "no sources"
    if before is None:
        path.unlink()
    else:
        path.write_text(before)
    assert cell_of(status_now(mini, "1.0"), "1.0", "contract").word == "0 fit"


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"of": 1', '{"of": "OF", "cells": [[{"state": "BLUE"}]]}'])
def test_what_was_kept_and_is_damaged_is_found_out_anew(mini: Miniature, damage: str) -> None:
    first = status_now(mini)
    path = mini.root / ".nox" / "checked" / "1.0.json"
    kept = path.read_text()
    path.write_text(damage.replace("OF", json.loads(kept)["of"]))
    assert terminal(status_now(mini)) == terminal(first)
    assert path.read_text() == kept


def test_what_cannot_be_checked_is_red_with_the_reason(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(project: Project, sources: SourceTree) -> list[Finding]:
        raise ContractError(f"{project.root}/ci/contract.toml:3: no reason.", hint="Give one.")

    monkeypatch.setattr(collect, "check_contract", unreadable)
    cell = cell_of(status_now(mini, "1.0"), "1.0", "contract")
    assert cell == Cell(state=State.RED, word="not checked", problems=["ci/contract.toml:3: no reason.", "Give one."])


def test_a_release_whose_wheel_is_damaged_does_not_hide_the_others(mini: Miniature) -> None:
    prove(mini)
    made = mini.root / mini.lock["1.1"].wheels[0].name
    made.write_bytes(b"no zip")
    mini.lock_wheel("1.1", made)
    status = status_now(mini)
    assert {cell_of(status, "1.1", column).word for column in ("choose", "contract", "base mentions")} == {"no sources"}
    assert made.name in cell_of(status, "1.1", "choose").problems[0]
    assert status.state("1.0") == State.GREEN


def test_results_that_cannot_be_read_are_an_error(mini: Miniature) -> None:
    mini.write("ci/results.json", "[{}]")
    with pytest.raises(OverlayError, match=r"results\.json"):
        status_now(mini)


def test_a_project_without_hooks_has_no_table_of_them(mini: Miniature) -> None:
    mini.write("patches/series", "")
    mini.patch.unlink()
    mini.patch.parent.rmdir()
    assert [table.name for table in status_now(mini).tables] == ["Stages", "Contract and base mentions"]


def test_the_commit_is_that_of_the_checkout(mini: Miniature) -> None:
    assert status_now(mini).commit == ""
    committed(mini)
    assert status_now(mini).commit == commit_of(mini.root)


@pytest.fixture
def inside(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> Miniature:
    monkeypatch.chdir(mini.root)
    return mini


def test_the_command_prints_the_status_and_writes_the_page(
    inside: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status"]) == 0
    output = capsys.readouterr().out
    assert "✓ exact, +1/-0, line 3" in output
    assert "✗" not in output
    assert "○ 0 of 2 releases green, 2 open" in output
    page = (inside.root / "dist" / "status.html").read_bytes()
    assert "○ 0 of 2 releases green, 2 open".encode() in page
    assert str(inside.root).encode() not in page
    assert cli.main(["status", "--html", "elsewhere/page.html"]) == 0
    assert (inside.root / "elsewhere" / "page.html").read_bytes() == page


def test_check_fails_where_anything_is_not_green(inside: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    prove(inside)
    assert cli.main(["status", "--check"]) == 0
    rows = json.loads(inside.project.results.read_text())
    rows[0]["failed"] = 3
    inside.project.results.write_text(json.dumps(rows))
    assert cli.main(["status"]) == 0
    capsys.readouterr()
    assert cli.main(["status", "--check"]) == 1
    output = capsys.readouterr().err
    assert f"error: 1.0: {rows[0]['stage']} 3 failed\n" in output
    assert "1.1" not in output
    assert str(Path("dist") / "status.html") in output


def test_a_page_that_cannot_be_written_is_one_error(inside: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--html", "overlay"]) == 1
    assert "error: overlay cannot be written: it is a folder." in capsys.readouterr().err


def test_a_process_that_is_killed_is_one_error(
    inside: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(collect, "_contract_cell", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert cli.main(["status"]) == 1
    said = capsys.readouterr().err
    assert "error: A process that reads releases was killed." in said
    assert "Run this again" in said
