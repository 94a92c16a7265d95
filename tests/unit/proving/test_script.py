"""A script that answers line by line."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from overlay_tools import console
from overlay_tools.errors import BenchError
from overlay_tools.proving.script import open_script

ANSWERS = """
import json, os, pathlib, sys, time
job = json.loads(pathlib.Path(sys.argv[1]).read_text())
print(json.dumps({"job": job, "variable": os.environ["OF_THE_SCRIPT"], "pid": os.getpid()}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked.get("bar"):
        print("Asking:  45%|####      | 9/20 [00:01<00:02]", end="\\r", file=sys.stderr, flush=True)
    time.sleep(asked.get("seconds", 0))
    if asked.get("kill"):
        print("Asking:  45%", file=sys.stderr)
        os.kill(os.getpid(), asked["kill"])
    if asked.get("end"):
        sys.exit("out of memory")
    print(json.dumps({"twice": asked["n"] * 2}), flush=True)
"""


def test_it_answers_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "twice.py"
    path.write_text(ANSWERS)
    env = {"OF_THE_SCRIPT": "1"}
    with open_script(Path(sys.executable), path, {"a": 1}, env=env, folder=tmp_path, failed=BenchError) as script:
        assert (script.said["job"], script.said["variable"]) == ({"a": 1}, "1")
        assert [script.ask(n=n) for n in (2, 3)] == [{"twice": 4}, {"twice": 6}]
        pid = script.said["pid"]
        os.kill(pid, 0)
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("it runs on")


def test_how_far_it_is_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each question: a bar of the one before says nothing."""
    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(console, "progress", lambda done, total: shown.append((done, total)))
    path = tmp_path / "twice.py"
    path.write_text(ANSWERS)
    env = {"OF_THE_SCRIPT": "1"}
    with open_script(Path(sys.executable), path, {}, env=env, folder=tmp_path, failed=BenchError) as script:
        script.ask(n=1, bar=True, seconds=3)
        assert shown[:1] == [(9, 20)]
        shown.clear()
        script.ask(n=1, seconds=1.5)
        assert shown == []


def test_where_it_ends_its_last_words_are_said(tmp_path: Path) -> None:
    path = tmp_path / "twice.py"
    path.write_text(ANSWERS)
    env = {"OF_THE_SCRIPT": "1"}
    with open_script(Path(sys.executable), path, {}, env=env, folder=tmp_path, failed=BenchError) as script:
        for _ in range(2):  # the second time nobody reads what is sent
            with pytest.raises(BenchError, match=r"Its process ended: out of memory\.") as caught:
                script.ask(end=True)
        assert str(tmp_path / "twice.log") in caught.value.hint


def test_where_it_is_killed_that_is_said(tmp_path: Path) -> None:
    """As by the system, where memory is short: its last words are about something else then."""
    path = tmp_path / "twice.py"
    path.write_text(ANSWERS)
    env = {"OF_THE_SCRIPT": "1"}
    with (
        open_script(Path(sys.executable), path, {}, env=env, folder=tmp_path, failed=BenchError) as script,
        pytest.raises(BenchError, match=r"Its process was ended by SIGKILL, as where memory is short\."),
    ):
        script.ask(kill=signal.SIGKILL)


def test_a_script_that_does_not_start_is_said(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_this_name")
    with (
        pytest.raises(BenchError, match="ModuleNotFoundError"),
        open_script(Path(sys.executable), path, {}, env={}, folder=tmp_path, failed=BenchError),
    ):
        pass
