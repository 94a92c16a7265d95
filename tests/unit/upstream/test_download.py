"""Base wheels in the cache, with an index that is a function and several commands at once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from overlay_tools.upstream import download
from overlay_tools.upstream.download import fetch

from unit.conftest import Miniature
from unit.test_checkout import begin


def test_commands_at_once_fetch_a_wheel_once_and_a_killed_one_leaves_nothing(
    mini: Miniature, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    release = mini.lock["1.0"]
    wheel = release.wheels[0]
    data = (mini.cache / wheel.sha256 / wheel.name).read_bytes()
    cache, calls = tmp_path / "empty", tmp_path / "calls"
    calls.mkdir()

    def pip_download(what: str, wheel: object, index: str, folder: Path) -> None:
        (calls / str(os.getpid())).touch()
        (folder / release.wheels[0].name).write_bytes(data[:100])
        time.sleep(1)
        (folder / release.wheels[0].name).write_bytes(data)

    monkeypatch.setattr(download, "pip_download", pip_download)
    killed = begin(lambda: fetch(release, wheel, cache) is None)
    deadline = time.monotonic() + 30
    while not list(calls.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    others = [begin(lambda: fetch(release, wheel, cache) is None) for _ in range(3)]
    time.sleep(0.3)
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    assert [os.waitpid(child, 0)[1] for child in others] == [0, 0, 0]
    assert len(list(calls.iterdir())) == 2
    assert fetch(release, wheel, cache).read_bytes() == data
    assert not (cache / wheel.sha256 / ".part").exists()
    assert [path.name for path in cache.iterdir()] == [wheel.sha256]
