"""`lock`, `port`, `edit`, `export` and `matrix`: what is missing or does not go together is refused."""

from __future__ import annotations

import io
import subprocess

import pytest
from overlay_tools import cli

from unit.conftest import Miniature


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (["port"], "VERSION is missing.", "nox -s port -- VERSION"),
        (["port", "1.2", "--continue"], "VERSION, --continue and --abort exclude each other.", "--continue"),
        (["port", "1.2", "--abort"], "VERSION, --continue and --abort exclude each other.", "--abort"),
        (["port", "--continue", "--abort"], "VERSION, --continue and --abort exclude each other.", "--abort"),
        (["port", "--drop", "choose"], "VERSION is missing.", "nox -s port -- VERSION"),
        (["port", "--abort", "--drop", "a"], "--take, --leave and --drop do not go with --abort.", "-- --abort"),
        (["port", "--abort", "--take", "a"], "--take, --leave and --drop do not go with --abort.", "-- --abort"),
        (["port", "1.2", "--take", "a", "--leave", "a"], "Hook a cannot be taken and left.", "--take or --leave"),
        (["lock"], "VERSION is missing: which release is to be locked?", "nox -s lock -- VERSION"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(
    mini_here: Miniature, words: list[str], said: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = mini_here.content()
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert f"error: {said}" in error
    assert hint in error
    assert mini_here.content() == before
    assert not (mini_here.root / ".nox").exists()


def test_lock_check_says_what_is_locked(mini_here: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lock", "--check", "9.9"]) == 1
    assert "holds no release '9.9'" in capsys.readouterr().err


def test_lock_check_without_a_lock_does_not_agree(mini_here: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    (mini_here.root / "upstream.lock").unlink()
    assert cli.main(["lock", "--check"]) == 1
    said = capsys.readouterr()
    assert "upstream.lock: No such file or directory" in said.err
    assert "agree" not in said.out


def test_export_without_a_worktree_says_how_to_make_one(
    mini_here: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export"]) == 1
    said = capsys.readouterr().err
    assert "There is no worktree to export." in said
    assert "`nox -s edit`" in said


def test_export_of_one_among_several_asks_which(mini_here: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    assert (cli.main(["edit"]), cli.main(["edit", "1.1"])) == (0, 0)
    assert cli.main(["export"]) == 1
    said = capsys.readouterr().err
    assert "There are 2 worktrees: 1.0, 1.1." in said
    assert "`nox -s export -- 1.0`" in said
    assert cli.main(["export", "1.1"]) == 0
    assert "Nothing has changed." in capsys.readouterr().out


def commit_hook(mini: Miniature) -> None:
    """Commit a new hook in the worktree of 1.0."""
    tree = mini.root / ".nox" / "worktrees" / "1.0"
    text = (tree / "sglang/loader.py").read_text()
    (tree / "sglang/loader.py").write_text(text.replace("return 3", "return 4"))
    who = ["-c", "user.name=me", "-c", "user.email=me@here"]
    message = "Four\n\nbecause\n\nForwarded: no: ours\nRemove-When: never"
    subprocess.run(["git", *who, "commit", "--quiet", "--all", f"--message={message}"], cwd=tree, check=True)


def test_export_without_a_terminal_wants_yes_for_a_new_hook(
    mini_here: Miniature, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli.main(["edit"]) == 0
    commit_hook(mini_here)
    before = mini_here.content()
    assert cli.main(["export"]) == 1
    said = capsys.readouterr()
    assert "four          1.0 to 1.1  becomes due" in said.out
    assert "Nothing was written: four would become due where it was not" in said.err
    assert "--yes" in said.err
    assert mini_here.content() == before
    assert cli.main(["export", "--releases", "<1.1", "--yes"]) == 0
    assert (mini_here.root / "patches/series").read_text() == "choose\nfour <=1.0\n"


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("", 1), ("no", 1)])
def test_export_asks_on_a_terminal(
    mini_here: Miniature, monkeypatch: pytest.MonkeyPatch, answer: str, status: int
) -> None:
    terminal = io.StringIO(f"{answer}\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    assert cli.main(["edit"]) == 0
    commit_hook(mini_here)
    assert cli.main(["export"]) == status
    assert (mini_here.root / "patches/four").exists() == (status == 0)


@pytest.mark.parametrize("answers", ["", "ours\n"])
def test_export_on_a_terminal_that_is_closed_writes_nothing(
    mini_here: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answers: str
) -> None:
    terminal = io.StringIO(answers)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    assert cli.main(["edit"]) == 0
    commit_hook(mini_here)
    if answers:  # what the message lacks is asked for first
        tree = mini_here.root / ".nox" / "worktrees" / "1.0"
        who = ["-c", "user.name=me", "-c", "user.email=me@here"]
        subprocess.run(["git", *who, "commit", "--quiet", "--amend", "--message=Four"], cwd=tree, check=True)
    before = mini_here.content()
    assert cli.main(["export"]) == 1
    assert ("has no Forwarded, Remove-When" if answers else "Nothing was written.") in capsys.readouterr().err
    assert mini_here.content() == before


def test_a_range_that_is_none_is_refused(mini_here: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "--releases", "newer"]) == 2
    assert "'newer' is not a range of releases" in capsys.readouterr().err
