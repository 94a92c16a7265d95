"""Nothing that the tool has started outlives it, however it or what started it comes to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from bench.kills.victims import COMMANDS, Victim, beneath_nox, make_stand_in

from unit.conftest import Miniature

SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]
UP = {"serve": "up", "run": "up", "status": "up", "test-engine": "serving", "pytest": "serving", "nox": "serving"}


class Started:
    """Starts commands in a checkout, and ends what is left of them with the test."""

    def __init__(self, mini: Miniature) -> None:
        self.root, self.env = mini.root, make_stand_in(mini.root)
        self.victims: list[Victim] = []

    def __call__(self, name: str, *before: str) -> Victim:
        words = [*beneath_nox(self.root), *COMMANDS["test-engine"]] if name == "nox" else COMMANDS[name]
        victim = Victim.start([*before, sys.executable, *words], self.root, self.env)
        self.victims.append(victim)
        victim.wait_for(self.root / UP[name])
        assert len(victim.running()) > (2 if name == "status" else 4)
        return victim


@pytest.fixture
def start(mini: Miniature) -> Iterator[Started]:
    started = Started(mini)
    yield started
    for victim in started.victims:
        with victim:
            pass


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("name", ["serve", "run", "status", "test-engine"])
def test_what_the_tool_has_started_ends_with_it(start: Started, name: str, number: signal.Signals) -> None:
    victim = start(name)
    victim.kill(number)
    if number != signal.SIGKILL:
        assert victim.process.wait() == 128 + number
        said = victim.said()
        assert f"error: Interrupted by {number.name}.\n" in said
        assert "Traceback" not in said


@pytest.mark.parametrize("number", SIGNALS)
def test_what_nox_has_started_ends_with_it(start: Started, number: signal.Signals) -> None:
    victim = start("nox")
    victim.kill(number)
    assert victim.process.wait() == -number


@pytest.mark.parametrize("name", ["serve", "test-engine", "nox"])
def test_a_whole_group_can_be_killed(start: Started, name: str) -> None:
    start(name).kill(signal.SIGKILL, group=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_ends_with_the_pytest_that_has_started_it(start: Started, number: signal.Signals) -> None:
    start("pytest").kill(number)


def test_all_ends_when_only_the_tool_beneath_nox_is_killed(start: Started) -> None:
    victim = start("nox")
    tools = [each for each in victim.running() if each.cmdline()[1:2] == ["tool.py"]]
    victim.kill(signal.SIGKILL, pid=tools[0].pid)
    assert victim.process.wait() == 1
    assert "test-engine 1.0" in victim.said()


@pytest.mark.parametrize("name", ["serve", "status", "test-engine", "nox"])
def test_ctrl_c_ends_all_of_it_with_a_word(start: Started, name: str) -> None:
    victim = start(name)
    victim.kill(signal.SIGINT, group=True)
    said = victim.said()
    assert victim.process.wait() == 130
    assert "error: Interrupted by SIGINT.\n" in said
    assert ("Stop the server\n" in said) == (name == "serve")
    assert "Traceback" not in said


def test_under_nohup_the_end_of_the_terminal_is_no_end(start: Started) -> None:
    victim = start("serve", "nohup")
    victim.process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        victim.process.wait(1)
    victim.kill(signal.SIGTERM)
    assert "Interrupted by SIGTERM" in victim.said()


def test_an_attached_program_is_of_the_tool_s_group_and_its_supervisor_is_not(start: Started) -> None:
    victim = start("test-engine")
    (supervisor,) = psutil.Process(victim.process.pid).children()
    (pytest_,) = supervisor.children()
    assert os.getpgid(pytest_.pid) == os.getpgid(victim.process.pid) != os.getpgid(supervisor.pid)
    assert os.getsid(pytest_.pid) == os.getsid(victim.process.pid) == os.getsid(supervisor.pid)


def test_a_supervisor_that_is_killed_takes_its_program_along(start: Started, tmp_path: Path) -> None:
    victim = start("test-engine")
    (supervisor,) = psutil.Process(victim.process.pid).children()
    victim.kill(signal.SIGKILL, pid=supervisor.pid)
    assert victim.process.wait() != 0
