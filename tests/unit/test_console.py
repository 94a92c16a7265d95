"""How far a step is: in a bar on a terminal, elsewhere in a line now and then."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from overlay_tools import console
from rich.console import Console


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let time pass as the test says: by what it adds."""
    passed = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: sum(passed))
    monkeypatch.setattr(time, "monotonic", lambda: sum(passed))
    return passed


def out(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> io.StringIO:
    file = io.StringIO()
    shown = Console(
        file=file, force_terminal=terminal, color_system=None, highlight=False, width=100, get_time=time.perf_counter
    )
    monkeypatch.setattr(console, "_out", shown)
    return file


def test_a_short_step_is_one_line(seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    file = out(monkeypatch, terminal=False)
    with console.step("Ask"):
        for done in range(5):
            console.progress(done, 5)
            seconds.append(5)
    assert file.getvalue() == "Ask ... done (25.00 s)\n"


def test_a_long_step_says_now_and_then_how_far_it_is(seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of ten takes 20 seconds."""
    file = out(monkeypatch, terminal=False)
    with console.step("Ask"):
        for done in range(10):
            console.progress(done, 10)
            seconds.append(20)
    lines = file.getvalue().split(" ... ")
    assert lines[0] == "Ask"
    assert lines[1] == "2 of 10, about 0:02:40 left"
    assert lines[-2].strip().startswith("8 of 10, about 0:00:40")
    assert lines[-1] == "\ndone (200.00 s)\n"
    assert len(lines) < 10


def test_another_count_begins_anew(seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a model is loaded, and then asked: that says nothing of how long this takes."""
    file = out(monkeypatch, terminal=False)
    with console.step("Ask"):
        for total in (100, 4):
            for done in range(4):
                console.progress(done, total)
                seconds.append(40)
    assert "3 of 100, about 1:04:40 left" in file.getvalue()
    assert "3 of 4, about 0:00:40 left" in file.getvalue()


def test_a_terminal_has_a_bar_as_long_as_the_step_runs(seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    file = out(monkeypatch, terminal=True)
    with console.step("Ask"):
        console.progress(3, 10)
        seconds.append(20)
        console.progress(6, 10)
        console._steps[-1].bar.refresh()
        console.line("something else")
    said = file.getvalue()
    assert "6/10" in said
    assert "something else" in said
    assert "Ask ... " in said.rpartition("\x1b[2K")[2]  # behind what takes the bar away
    assert "done (20.00 s)" in said.rpartition("\x1b[2K")[2]


def test_what_fails_says_so_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    file = out(monkeypatch, terminal=False)
    with pytest.raises(ZeroDivisionError), console.step("Ask"):
        console.progress(1 // 0, 2)
    assert file.getvalue() == "Ask ... failed\n"
    console.progress(1, 2)  # of no step
    assert file.getvalue() == "Ask ... failed\n"


def test_the_last_bar_of_a_log_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(console, "progress", lambda done, total: found.append((done, total)))
    log = tmp_path / "log"
    console.follow(log)
    log.write_text("nothing\n")
    console.follow(log)
    assert found == []
    old = b"Loading:  50%|#####     | 1/2 [00:01<00:01]\r"
    log.write_bytes(old + b"Requests:  30%|###       | 12/40 [00:10<00:20,  1.2it/s]")
    console.follow(log)
    log.write_bytes(old + b" " * 5000)
    console.follow(log)
    log.write_bytes(old)
    console.follow(log, len(old))
    console.follow(log)
    assert found == [(12, 40), (1, 2)]
