from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from overlay_tools.archive.writer import WheelWriter
from overlay_tools.errors import BuildError
from overlay_tools.wheels import dist

from unit.conftest import Miniature
from unit.wheels.test_builder import NAME, dist_of, refused


def test_a_write_that_fails_midway_leaves_what_was_there(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object) -> None:
        raise OSError(28, "No space left on device", "dist")

    monkeypatch.setattr(WheelWriter, "finish", full)
    assert "No space left on device" in refused(mini, BuildError)


@pytest.mark.parametrize("name", ["dist", ".nox"])
def test_a_file_where_a_folder_should_be_is_named_and_stays(mini: Miniature, name: str) -> None:
    mini.write(name, "a file where the folder should be")
    with pytest.raises(BuildError, match=rf"{name} is not a folder") as caught:
        mini.build()
    assert "Remove that file" in caught.value.hint
    assert (mini.root / name).read_text() == "a file where the folder should be"


def test_dist_that_is_read_only_is_named(mini: Miniature) -> None:
    (mini.root / "dist").mkdir()
    (mini.root / ".nox").mkdir()
    (mini.root / ".nox").chmod(0o777)
    # Root may write anywhere, so the build runs as nobody where the tests run as root.
    for path in (mini.root, mini.cache, *mini.root.parents):
        if path.owner() == Path("/proc/self").owner() and path.parts[:2] == ("/", "tmp") and len(path.parts) > 2:
            path.chmod(path.stat().st_mode | 0o055)
    (mini.root / "dist").chmod(0o555)
    uid = os.geteuid()
    if uid == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(BuildError, match=r"/dist/.*Permission denied") as caught:
            mini.build()
    finally:
        os.seteuid(uid)
    assert "must be able to write there" in caught.value.hint
    assert dist_of(mini) == []


BUILD = ["build", "1.0", "--python", "3.11", "--platform", "x86_64"]
KERNEL = "sglang_kernel-0.4+cpu.3-py3-none-any.whl"


def build_that_hangs(mini: Miniature) -> subprocess.Popen[str]:
    """Start a build that has written most of its wheel to dist/ and goes no further; return it once it is there."""
    script = (
        "import sys, time, overlay_tools.archive.writer as w, overlay_tools.cli as c\n"
        "def hang(self): print('midway', flush=True); time.sleep(60)\n"
        "w.WheelWriter.finish = hang\n"
        f"sys.exit(c.main({BUILD}))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=mini.root, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "midway" not in process.stdout.readline():
        assert process.poll() is None
    assert any(name.endswith(".part") for name in dist_of(mini))
    return process


def kill(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_build_that_is_killed_midway_leaves_what_was_there(mini: Miniature, number: signal.Signals) -> None:
    good = mini.build()
    content = good.path.read_bytes()
    kill(build_that_hangs(mini), number)
    assert good.path.read_bytes() == content
    if number == signal.SIGTERM:
        assert dist_of(mini) == [NAME]
    mini.build()
    assert dist_of(mini) == [NAME]
    assert good.path.read_bytes() == content


def test_two_builds_at_once_give_one_good_wheel(mini: Miniature) -> None:
    content = mini.build().path.read_bytes()
    words = [sys.executable, "-m", "overlay_tools", *BUILD]
    builds = [subprocess.Popen(words, cwd=mini.root, stdout=subprocess.DEVNULL) for _ in range(4)]
    deadline = time.monotonic() + 60
    while any(build.poll() is None for build in builds):
        assert time.monotonic() < deadline
        assert (mini.root / "dist" / NAME).read_bytes() == content
    assert [build.returncode for build in builds] == [0] * 4
    assert dist_of(mini) == [NAME, KERNEL]


def test_a_build_waits_for_one_that_is_writing_until_that_is_killed(mini: Miniature) -> None:
    content = mini.build().path.read_bytes()
    first = build_that_hangs(mini)
    (part,) = (mini.root / "dist").glob(".*.part")
    second = subprocess.Popen([sys.executable, "-m", "overlay_tools", *BUILD], cwd=mini.root, stdout=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(2)
    assert part.exists()
    kill(first, signal.SIGKILL)
    assert second.wait(30) == 0
    assert dist_of(mini) == [NAME, KERNEL]
    assert (mini.root / "dist" / NAME).read_bytes() == content


def test_a_build_does_not_wait_for_ever(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_that_hangs(mini)
    before = dist_of(mini)
    monkeypatch.setattr(dist, "_PATIENCE", 0.2)
    with pytest.raises(BuildError, match=r"Another build has held .*dist\.lock for 0\.2 seconds") as caught:
        mini.build()
    assert "end it" in caught.value.hint
    assert dist_of(mini) == before
    kill(first, signal.SIGKILL)
