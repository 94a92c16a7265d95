"""git, with the settings of a user who has many: the tool's own calls are as if there were none."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from overlay_tools import cli
from overlay_tools.errors import ToolError
from overlay_tools.subprocesses import git, git_bytes

from unit.conftest import Miniature

USERS = """\
[user]
	name = me
	email = me@here
[core]
	autocrlf = true
	fileMode = false
	symlinks = false
	quotePath = true
	hooksPath = {hooks}
	excludesFile = {ignore}
	attributesFile = {attributes}
	fsmonitor = {hooks}/post-commit
[init]
	templateDir = {template}
	defaultBranch = trunk
[diff]
	noprefix = true
	mnemonicPrefix = true
	algorithm = histogram
	renames = false
	external = false
[apply]
	whitespace = fix
[commit]
	gpgSign = false
	cleanup = verbatim
[merge]
	conflictStyle = zdiff3
[rerere]
	enabled = true
[status]
	relativePaths = true
	showUntrackedFiles = no
[log]
	showSignature = true
[i18n]
	commitEncoding = latin-1
	logOutputEncoding = latin-1
[trailer]
	separators = "="
"""
TRACE = "#!/bin/sh\ntouch {}\n"


@pytest.fixture
def hook_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give this process's user many settings, hooks and files to ignore; return what a hook of the user's leaves."""
    ran, home = tmp_path / "hook-ran", tmp_path / "home"
    for folder in (home / "hooks", home / "template" / "hooks", home / ".config" / "git"):
        folder.mkdir(parents=True)
    for hook in (
        *(home / "hooks" / name for name in ("pre-commit", "post-commit")),
        home / "template/hooks/pre-commit",
    ):
        hook.write_text(TRACE.format(ran))
        hook.chmod(0o755)
    for name in ("ignore", "attributes"):
        (home / name).write_text("*.py\n" if name == "ignore" else "*.py text eol=crlf\n")
        shutil.copy(home / name, home / ".config" / "git" / name)
    (home / ".gitconfig").write_text(
        USERS.format(**{name: home / name for name in ("hooks", "ignore", "attributes", "template")})
    )
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    return ran


def edit(mini: Miniature) -> Path:
    assert cli.main(["edit", "1.0"]) == 0
    return mini.root / ".nox" / "worktrees" / "1.0"


def test_none_of_a_users_settings_changes_what_the_tool_does(
    mini_here: Miniature, hook_ran: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    windows = mini_here.root / "overlay" / "sglang" / "models" / "windows.py"
    windows.write_bytes(b"A = 1\r\n")
    tree = edit(mini_here)
    assert not hook_ran.exists()
    assert not (tree / ".git" / "hooks").exists()  # which git's templates have, and a machine may have others
    assert git_bytes(["cat-file", "blob", "HEAD:sglang/models/windows.py"], cwd=tree).stdout == b"A = 1\r\n"
    assert git(["symbolic-ref", "HEAD"], cwd=tree).stdout == "refs/heads/main\n"
    assert b"\r" not in (tree / "sglang" / "loader.py").read_bytes()
    # What a user's git does not show is there all the same.
    (tree / "sglang" / "new.py").write_text("NEW = 1\n")
    assert subprocess.run(["git", "status", "--porcelain"], cwd=tree, capture_output=True, check=True).stdout == b""
    assert cli.main(["export"]) == 1
    assert f"error: {tree / 'sglang' / 'new.py'} is not committed." in capsys.readouterr().err
    assert cli.main(["edit", "1.0"]) == 1


def test_the_settings_and_hooks_of_one_repository_run_nothing(hook_ran: Path, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    subprocess.run(["git", "init", "--quiet", folder], check=True)  # with a hook of the user's template
    assert (folder / ".git" / "hooks" / "pre-commit").exists()
    script = tmp_path / "home" / "hooks" / "post-commit"
    for name, value in {"commit.gpgSign": "true", "gpg.program": script, "core.fsmonitor": script}.items():
        git(["config", name, str(value)], cwd=folder)
    (folder / "x.py").touch()
    who = ["-c", "user.name=me", "-c", "user.email=me@here"]
    for words in (["add", "--all"], ["status"], [*who, "commit", "--quiet", "--message=x"]):
        assert git(words, cwd=folder).returncode == 0
    assert not hook_ran.exists()


def test_what_a_user_commits_with_settings_is_exported(mini_here: Miniature, hook_ran: Path) -> None:
    tree = edit(mini_here)
    name = "sglang/models/für_uns.py"
    (tree / name).write_text("OURS = 'schön'\n", encoding="utf-8")
    loader = tree / "sglang" / "loader.py"
    loader.write_bytes(loader.read_bytes().replace(b"return 3", b"return 4"))
    subprocess.run(["git", "add", "--force", name], cwd=tree, check=True)
    message = "Grüße\n\nÄnderung.\n\nHook: four\nForwarded: no: ours\nRemove-When: never\n"
    subprocess.run(["git", "commit", "-qam", message.encode("latin-1")], cwd=tree, check=True)
    assert hook_ran.exists()  # the user's own commit is as the user has it
    assert cli.main(["export", "--yes"]) == 0
    assert (mini_here.root / "overlay" / name).read_bytes() == "OURS = 'schön'\n".encode()
    text = (mini_here.root / "patches" / "four" / "1.0.patch").read_bytes().decode("utf-8")
    assert "Subject: Grüße" in text
    assert "--- a/sglang/loader.py\n+++ b/sglang/loader.py\n" in text
    assert "\r" not in text
    assert cli.main(["build", "1.0", "--python", "3.11", "--platform", "x86_64"]) == 0


@pytest.fixture
def refusing_git(tmp_path: Path, hook_ran: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let git take every repository for another user's; return the user's configuration."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "git").write_text(
        f'#!/bin/sh\nGIT_TEST_ASSUME_DIFFERENT_OWNER=${{REFUSES:-1}} exec {shutil.which("git")} "$@"\n'
    )
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return Path(os.environ["HOME"], ".gitconfig")


def test_a_repository_of_another_user_is_refused_with_what_helps(
    mini_here: Miniature, refusing_git: Path, tmp_path: Path
) -> None:
    folder = tmp_path / 'a "folder" \\ of theirs'
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    for call in (git, git_bytes):
        with pytest.raises(ToolError, match=r"belongs to another user, so git does not open it\.$") as caught:
            call(["status"], cwd=folder)
    command = caught.value.hint.partition("`")[2].partition("`")[0]
    assert command.startswith("git config --global --add safe.directory ")
    subprocess.run(["sh", "-c", command], check=True)
    (folder / "x.py").touch()
    assert git(["status", "--porcelain"], cwd=folder).stdout == "?? x.py\n"  # and no more of the user's settings counts
    assert git_bytes(["symbolic-ref", "--short", "HEAD"], cwd=folder).stdout == b"trunk\n"


@pytest.mark.parametrize("value", ["*", "%(prefix)/nowhere", "~/nowhere"])
def test_a_user_says_which_folders_are_safe(value: str, refusing_git: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    subprocess.run(["git", "init", "--quiet", tmp_path / "theirs"], check=True)
    subprocess.run(["git", "config", "--global", "--add", "safe.directory", value], check=True)
    if value == "*":
        assert git(["status"], cwd=tmp_path / "theirs").returncode == 0
    else:
        with pytest.raises(ToolError, match="belongs to another user"):
            git(["status"], cwd=tmp_path / "theirs")


def test_a_worktree_that_is_trusted_is_exported(
    mini_here: Miniature, refusing_git: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["git", "init", "--quiet"], check=True)
    with monkeypatch.context() as made_by_another:
        made_by_another.setenv("REFUSES", "0")
        tree = edit(mini_here)
    assert cli.main(["build", "1.0", "--python", "3.11", "--platform", "x86_64"]) == 0  # it needs no repository
    assert cli.main(["export"]) == 1
    assert f"error: {tree} belongs to another user" in capsys.readouterr().err
    subprocess.run(["git", "config", "--global", "safe.directory", "*"], check=True)
    assert cli.main(["export"]) == 0
