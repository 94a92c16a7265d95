"""Several commands at once in one checkout, each in a process of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from overlay_tools import checkout, cli
from overlay_tools.checkout import check_line_ends, only_writer, own_folder
from overlay_tools.errors import OverlayError
from overlay_tools.upstream.lockfile import Release

from unit.conftest import PATCH, REPOSITORY, Miniature, upstream_files

HERE = ("--python", "3.11", "--platform", "x86_64")


def begin(call: Callable[[], object]) -> int:
    """Run something in a process of its own, whose exit status tells whether it went well; return its number."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = int(bool(call()))
        finally:
            os._exit(status)
    return child


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_for(path: Path) -> None:
    for _ in range(500):
        if path.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} did not come")


def hold(root: Path) -> None:
    with only_writer(root):
        (root / "held").touch()
        time.sleep(60)


@pytest.mark.parametrize(
    "commands",
    [
        (["port", "1.2"], ["port", "1.3"]),
        (["port", "1.2"], ["lock", "1.3"]),
        (["lock", "1.2"], ["port", "1.3"]),
        (["lock", "1.2"], ["lock", "1.3"]),
    ],
)
def test_no_command_loses_what_another_writes_meanwhile(
    mini_here: Miniature, commands: Sequence[Sequence[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    mini_here.patch.write_text(PATCH.replace("<=1.1", "<=1.3"))  # `lock` widens no range
    releases = {version: mini_here.publish(version, upstream_files(version)) for version in ("1.2", "1.3")}
    asked = mini_here.root / "asked"

    def query(version: str, index: str) -> Release:
        asked.touch()
        time.sleep(0.5)  # long enough for the other command to read the lock as it is, if nothing keeps it from that
        return releases[version]

    monkeypatch.setattr("overlay_tools.upstream.asked.query_release", query)
    first = begin(lambda: cli.main(commands[0]))
    wait_for(asked)
    second = begin(lambda: cli.main(commands[1]))
    assert (status_of(first), status_of(second)) == (0, 0)
    assert list(mini_here.lock) == ["1.0", "1.1", "1.2", "1.3"]


@pytest.mark.parametrize("words", [["port", "1.2"], ["port", "--abort"], ["lock", "1.2"], ["edit"], ["export", "1.0"]])
def test_a_command_that_writes_waits_for_another_one_and_is_refused_in_the_end(
    mini_here: Miniature, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkout, "_PATIENCE", 0.1)
    before = mini_here.content()
    child = begin(lambda: hold(mini_here.root))
    try:
        wait_for(mini_here.root / "held")
        assert cli.main(words) == 1
    finally:
        os.kill(child, signal.SIGKILL)
        status_of(child)
    said = capsys.readouterr()
    assert "Another command writes to this checkout: waiting for it to end." in said.out
    assert f"error: Another command has held {mini_here.root / '.nox' / 'checkout.lock'} for" in said.err
    assert "end it" in said.err
    (mini_here.root / "held").unlink()
    assert mini_here.content() == before


def test_a_command_that_writes_nothing_does_not_wait(mini_here: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "_PATIENCE", 0.1)
    with only_writer(mini_here.root):
        assert cli.main(["build", "1.0", "--python", "3.11", "--platform", "x86_64"]) == 0


def test_a_killed_process_and_one_that_fails_hold_nothing(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "_PATIENCE", 0.1)
    child = begin(lambda: hold(mini.root))
    wait_for(mini.root / "held")
    os.kill(child, signal.SIGKILL)
    assert status_of(child) == -signal.SIGKILL
    with pytest.raises(OverlayError, match="of its own"), only_writer(mini.root):
        raise OverlayError("An error of its own.")
    with only_writer(mini.root):
        pass


def test_lock_keeps_what_it_writes_after_a_port_that_was_killed(
    mini_here: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = mini_here.publish("1.2", upstream_files("1.2"))
    monkeypatch.setattr("overlay_tools.upstream.asked.query_release", lambda version, index: release)
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.name == "undo.json":
            os.kill(os.getpid(), signal.SIGKILL)  # everything is written, and what it was is not forgotten yet
        unlink(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        assert status_of(begin(lambda: cli.main(["port", "1.2"]))) == -signal.SIGKILL
    assert cli.main(["lock", "1.2"]) == 0
    assert cli.main(["edit"]) == 0
    assert "1.2" in mini_here.lock


def git_here(root: Path, *words: str) -> None:
    subprocess.run(["git", "-c", "user.name=me", "-c", "user.email=me@here", *words], cwd=root, check=True)


@pytest.fixture
def committed(mini_here: Miniature) -> Miniature:
    """Return a checkout whose files are committed, as they are in this project's own."""
    shutil.copy(REPOSITORY / ".gitattributes", mini_here.root)
    mini_here.write("overlay/sglang/models/windows.py", "A = 1\r\n")
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=x"]):
        git_here(mini_here.root, *words)
    return mini_here


def test_a_clone_that_is_to_have_other_line_ends_builds_the_same(
    committed: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = committed.build()
    for setting in ("core.autocrlf=true", "core.eol=crlf", "core.autocrlf=input"):
        clone = tmp_path / setting
        subprocess.run(["git", "-c", setting, "clone", "--quiet", committed.root, clone], check=True)
        monkeypatch.chdir(clone)
        assert cli.main(["build", "1.0", *HERE]) == 0
        assert hashlib.sha256((clone / "dist" / built.path.name).read_bytes()).hexdigest() == built.sha256


def test_a_checkout_whose_line_ends_git_has_changed_is_refused_and_can_be_mended(
    committed: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    built = committed.build()
    names = ["overlay/sglang/models/ours.py", "patches/choose/1.0.patch", "NOTICE", "LICENSE", "patches/series"]
    for name in names:
        path = committed.root / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    own = committed.root / "overlay" / "sglang" / "models" / "ours.py"
    own.write_bytes(own.read_bytes() + b"MORE = 1\r\n")
    for words in (["build", "1.0", *HERE], ["plugin"], ["status"], ["lint-patches"], ["edit"]):
        assert cli.main(words) == 1
        error = capsys.readouterr().err
        assert (
            f"error: {committed.root / 'LICENSE'} has CRLF line ends here, and 4 more files have them, where" in error
        )
        assert "`core.autocrlf`" in error
    assert not (committed.root / ".nox" / "worktrees").exists()
    command = error.split("`")[-2]
    subprocess.run(["sh", "-c", command], cwd=committed.root, check=True)
    assert own.read_text() == "OURS = 1\nMORE = 1\n"
    own.write_text("OURS = 1\n")
    assert committed.build().sha256 == built.sha256
    assert cli.main(["build", "1.0", *HERE]) == 0


def test_line_ends_that_are_meant_to_be_so_are_no_fault(committed: Miniature) -> None:
    committed.write("overlay/sglang/models/new.py", "NEW = 1\r\n")  # new here, and nothing to compare it with
    patch = committed.patch.read_bytes()
    committed.patch.write_bytes(patch.replace(b"Why: because\n", b"Why: because\r\n"))  # both kinds
    check_line_ends(committed.root)
    git_here(committed.root, "add", "--all")
    check_line_ends(committed.root)
    shutil.rmtree(committed.root / ".git")
    check_line_ends(committed.root)


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="this checkout has no git")
def test_git_changes_no_file_of_this_project() -> None:
    done = subprocess.run(["git", "ls-files", "--eol"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert {line.split()[2] for line in done.stdout.splitlines()} == {"attr/-text"}
    assert not [line for line in done.stdout.splitlines() if "crlf" in line]


def test_commands_that_are_at_work_at_once_have_a_folder_each(tmp_path: Path) -> None:
    def hold() -> int:
        with own_folder(tmp_path / "servers") as folder:
            (folder / "mine").write_text(str(os.getpid()))
            time.sleep(60)
        return 0

    def holders() -> dict[str, str]:
        return {path.parent.name: path.read_text() for path in (tmp_path / "servers").glob("*/mine")}

    children = [begin(hold), begin(hold)]
    try:
        deadline = time.monotonic() + 30
        while sorted(holders().values()) != sorted(map(str, children)):
            assert time.monotonic() < deadline, holders()
            time.sleep(0.05)
        assert holders().keys() == {"1", "2"}
        with own_folder(tmp_path / "servers") as folder:
            assert folder.name == "3"
        killed = next(int(pid) for name, pid in holders().items() if name == "1")
        os.kill(killed, signal.SIGKILL)
        os.waitpid(killed, 0)
        children.remove(killed)
        with own_folder(tmp_path / "servers") as folder:
            assert folder.name == "1"
        with own_folder(tmp_path / "servers") as folder:
            assert folder.name == "1"
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
