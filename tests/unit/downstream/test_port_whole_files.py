"""Hooks that delete and rename files, and change their modes, carried to a new release."""

from __future__ import annotations

import os
import zipfile

import pytest
from overlay_tools.archive.mode import Executable
from overlay_tools.downstream.diff import make_diff
from overlay_tools.wheels.verify import verify_wheel

from unit.conftest import ENGINE, HEADER, LOADER, Miniature, upstream_files
from unit.downstream.porting import git, stopped, worktree
from unit.downstream.test_port import holds, outcomes, port_to, resume

FILE, ENGINE_FILE, MOTOR, TEXT = "sglang/loader.py", "sglang/engine.py", "sglang/motor.py", "sglang/übersetzung.txt"
FASTER = ENGINE.replace("size = 4", "size = 8")


@pytest.fixture
def mini(mini: Miniature) -> Miniature:
    """Return a project whose hook deletes a file, renames another with a changed line, and changes a mode."""
    for version in ("1.0", "1.1"):
        mini.lock_release(version, upstream_files(version) | {ENGINE_FILE: ENGINE.encode()})
    before = {TEXT: "schön\n".encode(), ENGINE_FILE: ENGINE.encode(), FILE: LOADER.encode()}
    after = {TEXT: None, ENGINE_FILE: None, MOTOR: FASTER.encode(), FILE: Executable(LOADER.encode())}
    mini.patch.write_text(HEADER + make_diff(before, after, {MOTOR: ENGINE_FILE}))
    return mini


def made(mini: Miniature) -> dict[str, tuple[str, str]]:
    """Return the loader and what the other files have become in the wheel of 1.2, with their modes."""
    path = mini.build("1.2").path
    assert verify_wheel(path).differences == []
    with zipfile.ZipFile(path) as wheel:
        infos = [info for info in wheel.infolist() if info.filename in (FILE, ENGINE_FILE, MOTOR, TEXT)]
        return {info.filename: (wheel.read(info).decode(), f"{info.external_attr >> 16:o}") for info in infos}


WANTED = {FILE: (LOADER, "100755"), MOTOR: (FASTER, "100644")}


def test_what_is_exact_is_carried_without_a_question(mini: Miniature) -> None:
    rows = port_to(mini, "1.2", {ENGINE_FILE: ENGINE})
    assert sorted((place, outcome) for _, place, outcome, _ in rows) == [
        (ENGINE_FILE, "exact"),
        (f"{ENGINE_FILE}:2", "exact"),
        (FILE, "exact"),
        (TEXT, "exact"),
    ]
    assert "<=1.2" in mini.patch.read_text()
    assert made(mini) == WANTED
    holds(mini)


def test_a_deletion_of_a_file_that_has_changed_is_confirmed_by_a_person(mini: Miniature) -> None:
    said = stopped(mini, lambda: port_to(mini, "1.2", {ENGINE_FILE: ENGINE, TEXT: "schöner\n"}))
    assert "conflict: the file has changed; the deletion is proposed all the same" in said
    assert not (worktree(mini) / TEXT).exists()
    shown = git(mini, "-c", "core.quotePath=false", "show", "--format=", "--name-status").splitlines()
    assert {*shown} == {f"R097\t{ENGINE_FILE}\t{MOTOR}", f"M\t{FILE}", f"D\t{TEXT}"}
    assert sorted(outcomes(resume(mini))) == [("choose", "settled")] * 3
    variant = (mini.root / "patches/choose/1.2.patch").read_text()
    assert "deleted file mode 100644" in variant
    assert f"rename to {MOTOR}" in variant
    assert made(mini) == WANTED
    holds(mini)


def test_a_deletion_that_is_no_longer_right_is_taken_back(mini: Miniature) -> None:
    stopped(mini, lambda: port_to(mini, "1.2", {ENGINE_FILE: ENGINE, TEXT: "schöner\n"}))
    git(mini, "checkout", "--quiet", "HEAD~", "--", TEXT)
    resume(mini)
    assert made(mini) == {**WANTED, TEXT: ("schöner\n", "100664")}
    assert "deleted" not in (mini.root / "patches/choose/1.2.patch").read_text()
    holds(mini)


def test_a_rename_that_conflicts_is_settled_under_another_name(mini: Miniature) -> None:
    said = stopped(mini, lambda: port_to(mini, "1.2", {ENGINE_FILE: ENGINE, MOTOR: "THEIRS = 1\n"}))
    assert f"conflict: the release has a file {MOTOR} of its own" in said
    assert (worktree(mini) / ENGINE_FILE).read_text() == FASTER
    git(mini, "mv", ENGINE_FILE, "sglang/ours.py")
    resume(mini)
    assert "rename to sglang/ours.py" in (mini.root / "patches/choose/1.2.patch").read_text()
    assert made(mini) == {FILE: WANTED[FILE], MOTOR: ("THEIRS = 1\n", "100664")}
    holds(mini)


def test_what_upstream_has_done_too_is_dropped_or_left_out(mini: Miniature) -> None:
    said = stopped(mini, lambda: port_to(mini, "1.2", {ENGINE_FILE: None, MOTOR: ENGINE, TEXT: None}))
    assert f"upstream: the release has {MOTOR}, and no {ENGINE_FILE}" in said
    assert "upstream: the release does not have it either" in said
    assert (worktree(mini) / MOTOR).read_text() == FASTER
    assert os.access(worktree(mini) / FILE, os.X_OK)
    resume(mini)
    variant = (mini.root / "patches/choose/1.2.patch").read_text()
    assert [line for line in variant.splitlines() if line.startswith("diff")] == [
        f"diff --git a/{name} b/{name}" for name in (FILE, MOTOR)
    ]
    assert made(mini) == WANTED
    holds(mini)


def test_a_file_that_a_person_deletes_is_said_to_be(mini: Miniature) -> None:
    stopped(mini, lambda: port_to(mini, "1.2", {ENGINE_FILE: ENGINE, TEXT: "schöner\n"}))
    (worktree(mini) / FILE).unlink()
    rows = {place: note for _, place, _, note in resume(mini)}
    assert rows == {
        FILE: "deleted in the worktree",
        TEXT: "deleted in the worktree",
        MOTOR: "+1/-1 in the worktree",
    }
    assert made(mini) == {MOTOR: WANTED[MOTOR]}
    holds(mini)


def test_a_proposed_rename_goes_with_the_hook_that_is_dropped(mini: Miniature) -> None:
    stopped(mini, lambda: port_to(mini, "1.2", {ENGINE_FILE: ENGINE, TEXT: "schöner\n"}))
    assert (worktree(mini) / MOTOR).exists()
    assert outcomes(resume(mini, "choose")) == [("choose", "dropped")]
    holds(mini)


def test_a_new_file_that_renames_nothing_is_refused(mini: Miniature) -> None:
    stopped(mini, lambda: port_to(mini, "1.2", {ENGINE_FILE: ENGINE, TEXT: "schöner\n"}))
    (worktree(mini) / "sglang/new.py").write_text("NEW = 1\n")
    said = stopped(mini, lambda: resume(mini))
    assert "new.py is not one of upstream's files" in said
    assert "Files of our own belong in overlay/" in said


def test_hooks_before_one_that_is_open_are_commits_with_their_renames(mini: Miniature) -> None:
    changed = LOADER.replace("return 3", "return 4")
    mini.add_hook("later", {FILE: LOADER}, {FILE: changed})
    stopped(mini, lambda: port_to(mini, "1.2", {ENGINE_FILE: ENGINE, FILE: LOADER.replace("return 3", "return 9")}))
    assert git(mini, "log", "-2", "--format=%s").splitlines() == ["What later does", "Let the overlay choose"]
    assert not (worktree(mini) / ENGINE_FILE).exists()
    (worktree(mini) / FILE).write_text(changed)
    assert outcomes(resume(mini))[-1] == ("later", "settled")
    assert made(mini) == {**WANTED, FILE: (changed, "100755")}
    holds(mini)
