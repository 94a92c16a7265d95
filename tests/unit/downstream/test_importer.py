from __future__ import annotations

import base64
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
from overlay_tools import cli
from overlay_tools.downstream.importer import plan_import
from overlay_tools.errors import PatchError, WorktreeError
from overlay_tools.patches.series import load_series

from unit.conftest import ENGINE, LOADER, Miniature, write_wheel
from unit.downstream.foreign import (
    ENGINE_FILE,
    FASTER,
    FILE,
    LAST,
    brought_in,
    checkout,
    commit,
    difference,
    git,
    in_wheel,
    mailed,
    notes,
    outcomes,
    planned,
    upstream,
    write,
)  # fmt: skip


@pytest.fixture
def mini(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> Miniature:
    """Return a project, as the folder that this process is in, whose two releases have an engine too."""
    for version in ("1.0", "1.1"):
        mini.lock_release(version, upstream(version))
    monkeypatch.chdir(mini.root)
    return mini


def test_a_patch_becomes_a_hook_of_its_base(mini: Miniature, elsewhere: Path) -> None:
    source = difference(elsewhere, "0007-Four_at last", loader=(LOADER, LAST))
    plan = brought_in(mini, source)
    assert [(row.hook, row.lines, row.releases) for row in plan.rows] == [("four-at-last", "+1/-1", ["1.0"])]
    assert (mini.root / "patches/series").read_text() == "choose\nfour-at-last <=1.0\n"
    assert "return 4" in in_wheel(mini, FILE)
    assert "choose(config)" in in_wheel(mini, FILE)
    assert "return 3" in in_wheel(mini, FILE, "1.1")


def test_what_is_unknown_is_to_be_filled_and_lint_warns_of_it(
    mini: Miniature, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    brought_in(mini, difference(elsewhere, "four", loader=(LOADER, LAST)))
    text = (mini.root / "patches/four/1.0.patch").read_text()
    assert "Subject: four\nWhy: TO BE FILLED\n" in text
    assert "Forwarded: no: TO BE FILLED\nRemove-When: TO BE FILLED\n" in text
    capsys.readouterr()
    assert cli.main(["lint-patches"]) == 0
    said = capsys.readouterr().out
    assert "four/1.0.patch: Why, Forwarded, Remove-When: to be filled in." in said
    assert "choose/1.0.patch" not in said


def test_commits_give_subject_reason_and_trailers(mini: Miniature, elsewhere: Path) -> None:
    fork = checkout(elsewhere)
    message = "Größer\n\nWhy it is:\nit was too small.\n\nForwarded: https://example.org/1\nSigned-off-by: me <a@b>\n"
    commit(fork, message, {f"python/{ENGINE_FILE}": FASTER})
    commit(fork, "Four\n\nHook: of-mine", {f"python/{FILE}": LAST})
    plan = brought_in(mini, mailed(fork, 2, one=True))
    assert outcomes(plan) == [("ours.mbox 1/2", "brought in", "gr-er"), ("ours.mbox 2/2", "brought in", "of-mine")]
    hook = next(hook for hook in load_series(mini.root / "patches") if hook.name == "gr-er")
    header = hook.variants[0].header
    assert (header["Subject"], header["Why"]) == ("Größer", "Why it is: it was too small.")
    assert (header["Forwarded"], header["Remove-When"]) == ("https://example.org/1", "TO BE FILLED")


def test_a_folder_is_applied_in_the_order_of_its_series(mini: Miniature, elsewhere: Path) -> None:
    folder = elsewhere / "series of ours"
    folder.mkdir()
    five = LAST.replace("return 4", "return 5")
    difference(folder, "b", loader=(LOADER, LAST))
    difference(folder, "a", loader=(LAST, five))
    assert [row.outcome for row in planned(mini, folder).rows] == ["conflict", "brought in"]
    (folder / "series").write_text("# ours\nb.patch\n\na.patch -p1\n")
    assert [row.hook for row in brought_in(mini, folder).rows] == ["b", "a"]
    assert "return 5" in in_wheel(mini, FILE)


def test_a_patch_that_a_series_applies_in_reverse_is_refused(mini: Miniature, elsewhere: Path) -> None:
    folder = elsewhere / "ours"
    folder.mkdir()
    difference(folder, "a", loader=(LAST, LOADER))
    (folder / "series").write_text("# ours\na.patch -p1 -R  # back\n")
    with pytest.raises(PatchError) as caught:
        planned(mini, folder)
    assert str(caught.value) == f"{folder / 'series'}:2: a.patch is to be applied in reverse, which import does not do."
    assert f"`interdiff {folder / 'a.patch'} /dev/null`" in caught.value.hint
    (folder / "series").write_text("a.patch -p1 # -R\n")
    assert [row.title for row in planned(mini, folder).rows] == ["a.patch"]


def test_numbers_of_patches_count_as_such(mini: Miniature, elsewhere: Path) -> None:
    folder = elsewhere / "ours"
    folder.mkdir()
    difference(folder, "2-x", loader=(LOADER, LAST))
    difference(folder, "10-x", loader=(LAST, LAST.replace("return 4", "return 5")))
    rows = planned(mini, folder).rows
    assert [(row.title, row.outcome) for row in rows] == [("2-x.patch", "brought in"), ("10-x.patch", "brought in")]


def test_what_is_not_read_of_a_folder_is_named(mini: Miniature, elsewhere: Path) -> None:
    folder = elsewhere / "ours"
    folder.mkdir()
    difference(folder, "a", loader=(LOADER, LAST))
    write(folder, {"b.patch.gz": b"", "c.txt": "", "sub/x.patch": "", "sub/x.py": "", ".git/x.patch": ""})
    plan = brought_in(mini, folder)
    assert outcomes(plan) == [("a.patch", "brought in", "a"), ("other files", "left out", "")]
    assert [note.partition(": ")[0] for note in plan.rows[1].notes] == ["b.patch.gz", "c.txt", "sub/x.patch"]
    assert "c.txt: it is not read: of a folder, files at its top are that end with .patch, " in notes(plan)


def test_new_files_go_to_the_overlay_and_later_patches_change_them_there(mini: Miniature, elsewhere: Path) -> None:
    fork = checkout(elsewhere)
    commit(fork, "New", {"python/sglang/models/new.py": "NEW = 1\n", "python/sglang/models/end.txt": "no end"})
    commit(fork, "Newer", {"python/sglang/models/new.py": "NEW = 2\n", f"python/{FILE}": LAST})
    plan = brought_in(mini, mailed(fork, 2))
    assert outcomes(plan) == [("0001-New.patch", "brought in", ""), ("0002-Newer.patch", "brought in", "newer")]
    assert (mini.root / "overlay/sglang/models/new.py").read_text() == "NEW = 2\n"
    assert (mini.root / "overlay/sglang/models/end.txt").read_text() == "no end"


def test_what_cannot_be_brought_in_is_named_and_the_rest_is(mini: Miniature, elsewhere: Path) -> None:
    fork = checkout(elsewhere)
    commit(fork, "Tests alone", {"test/test_loader.py": "def test(): assert 1\n"})
    commit(fork, "Two sides", {f"python/{ENGINE_FILE}": FASTER, "README.md": "ours\n"})
    commit(fork, "Gone", {"python/sglang/übersetzung.txt": None})
    git(fork, "mv", "python/sglang/version.py", "python/sglang/other.py")
    commit(fork, "Moved")
    (fork / "python" / FILE).chmod(0o755)
    commit(fork, "Mode")
    commit(fork, "Binary", {"python/sglang/native.so": b"\0other"})
    commit(fork, "Broken", {f"python/{FILE}": "def (:\n" + LOADER})
    commit(fork, "Stale", {f"python/{FILE}": "THIS = 'is'\n" + LOADER})
    plan = brought_in(mini, mailed(fork, 8))
    assert {row.title[5:-6]: row.outcome for row in plan.rows} == {
        "Tests-alone": "left out",
        "Two-sides": "in part",
        "Gone": "brought in",
        "Moved": "brought in",
        "Mode": "brought in",
        "Binary": "left out",
        "Broken": "conflict",
        "Stale": "conflict",
    }
    said = notes(plan)
    for part in ("test/test_loader.py: it is outside", "README.md: it is outside"):
        assert part in said
    for part in ("sglang/native.so: it is binary", "loader.py:1: invalid syntax"):
        assert part in said
    stale = elsewhere / "mails" / "0008-Stale.patch"
    line = next(n for n, line in enumerate(stale.read_text().split("\n"), 1) if line.startswith("@@ "))
    assert f"{stale}:{line}: the lines that the hunk expects are not in sglang/loader.py of sglang 1.0" in said
    assert "size = 8" in in_wheel(mini, ENGINE_FILE)


def test_bytes_that_are_not_utf_8_are_named_by_the_line_of_upstreams_file(mini: Miniature, elsewhere: Path) -> None:
    fork = checkout(elsewhere)
    commit(fork, "Latin", {"python/sglang/übersetzung.txt": "gut\nschön\n".encode("latin-1")})
    (row,) = planned(mini, mailed(fork, 1)).rows
    assert row.outcome == "conflict"
    assert "Hook latin: sglang/übersetzung.txt:2: byte 0xf6 is not UTF-8." in row.notes


def test_a_file_that_would_configure_git_is_not_brought_in(mini: Miniature, elsewhere: Path) -> None:
    fork = checkout(elsewhere)
    git(fork, "mv", "python/sglang/version.py", "python/sglang/other.py")
    commit(fork, "Moved", {f"python/{ENGINE_FILE}": FASTER})
    (mail,) = mailed(fork, 1).iterdir()
    mail.write_text(mail.read_text().replace("sglang/other.py", "sglang/.git/config"))
    plan = brought_in(mini, mail)
    assert "sglang/.git/config: no file of a wheel may have this name" in notes(plan)
    assert "size = 8" in in_wheel(mini, ENGINE_FILE)


@pytest.mark.parametrize("one", [True, False])
def test_mails_that_delete_rename_and_change_a_mode_are_brought_in(mini: Miniature, elsewhere: Path, one: bool) -> None:
    fork = checkout(elsewhere)
    (fork / "python/sglang/version.py").chmod(0o755)
    git(fork, "mv", f"python/{ENGINE_FILE}", "python/sglang/motor.py")
    commit(fork, "All", {"python/sglang/übersetzung.txt": None, "python/sglang/motor.py": FASTER})
    commit(fork, "Later", {"python/sglang/motor.py": FASTER.replace("hits += 1", "hits += 2")})
    source = mailed(fork, 2, one=one)
    plan = brought_in(mini, source)
    assert [(row.outcome, row.hook, row.notes) for row in plan.rows] == [
        ("brought in", "all", []),
        ("brought in", "later", []),
    ]
    hook = (mini.root / "patches/all/1.0.patch").read_text()
    assert hook.count("diff --git") == 3
    for said in ("rename to sglang/motor.py", "deleted file mode", "new mode 100755"):
        assert said in hook
    assert in_wheel(mini, "sglang/motor.py") == FASTER.replace("hits += 1", "hits += 2")
    with zipfile.ZipFile(mini.build("1.0").path) as wheel:
        assert not {ENGINE_FILE, "sglang/übersetzung.txt"} & {*wheel.namelist()}
        assert wheel.getinfo("sglang/version.py").external_attr >> 16 == 0o100755
    assert [row.outcome for row in planned(mini, source).rows] == ["there already"] * 2


@pytest.mark.parametrize("changed", [True, False])
def test_a_file_that_a_patch_moves_out_of_the_wheel_is_deleted(mini: Miniature, elsewhere: Path, changed: bool) -> None:
    fork = checkout(elsewhere)
    git(fork, "mv", f"python/{ENGINE_FILE}", "engine.py")
    commit(fork, "Out", {"engine.py": FASTER if changed else ENGINE})
    plan = brought_in(mini, mailed(fork, 1, one=True))
    assert [(row.outcome, row.hook, row.notes) for row in plan.rows] == [
        ("in part", "out", ["engine.py: it is outside the wheel"])
    ]
    assert "deleted file mode" in (mini.root / "patches/out/1.0.patch").read_text()
    with pytest.raises(KeyError):
        in_wheel(mini, ENGINE_FILE)


def test_files_of_the_overlay_can_be_renamed_and_deleted_too(mini: Miniature, elsewhere: Path) -> None:
    fork = checkout(elsewhere)
    commit(fork, "New", {"python/sglang/new.py": "NEW = 1\n", "python/sglang/more.py": "MORE = 'of it'\n"})
    git(fork, "mv", "python/sglang/new.py", "python/sglang/newer.py")
    (fork / "python/sglang/newer.py").chmod(0o755)
    commit(fork, "Moved", {"python/sglang/more.py": None})
    plan = brought_in(mini, mailed(fork, 2))
    assert [row.outcome for row in plan.rows] == ["brought in"] * 2
    assert (mini.root / "overlay/sglang/newer.py").stat().st_mode & 0o111
    assert "takes away overlay/sglang/more.py" in notes(plan)
    held = [path.name for path in (mini.root / "overlay/sglang").glob("*.py")]
    assert sorted(held) == ["newer.py"]


@pytest.mark.parametrize("full", [True, False])
def test_a_file_that_is_not_as_the_patch_found_it_is_not_deleted(mini: Miniature, elsewhere: Path, full: bool) -> None:
    fork = checkout(elsewhere)
    commit(fork, "Changed", {f"python/{ENGINE_FILE}": FASTER})
    commit(fork, "Gone", {f"python/{ENGINE_FILE}": None})
    path = elsewhere / "gone.patch"
    path.write_text(git(fork, "diff", *([] if full else ["--irreversible-delete"]), "HEAD~", "HEAD"))
    plan = planned(mini, path)
    assert [row.outcome for row in plan.rows] == ["conflict"]
    assert f"{ENGINE_FILE} is not as the patch found it, which deletes it." in notes(plan)
    assert f"{ENGINE_FILE}: the patch deletes it: `git rm` it in the worktree if it is to go" in notes(plan)


def test_a_rename_to_a_name_that_is_taken_is_a_conflict(mini: Miniature, elsewhere: Path) -> None:
    fork = checkout(elsewhere)
    git(fork, "rm", "--quiet", "python/sglang/version.py")
    git(fork, "commit", "--quiet", "--message=Gone")
    git(fork, "mv", f"python/{ENGINE_FILE}", "python/sglang/version.py")
    commit(fork, "Moved", {"python/sglang/version.py": FASTER})
    plan = planned(mini, mailed(fork, 1))
    assert [row.outcome for row in plan.rows] == ["conflict"]
    assert f"{ENGINE_FILE} is renamed to sglang/version.py, which is there already." in notes(plan)
    assert "`git mv` it to sglang/version.py in the worktree" in notes(plan)


def test_other_releases_take_a_hook_where_it_fits_exactly(mini: Miniature, elsewhere: Path) -> None:
    mini.lock_release("1.2", upstream("1.2") | {FILE: LOADER.replace("return 3", "return 9").encode()})
    mini.patch.write_text(mini.patch.read_text().replace("<=1.1", "<=1.2"))
    folder = elsewhere / "ours"
    folder.mkdir()
    difference(folder, "a", loader=(LOADER, LAST))
    difference(folder, "b", engine=(ENGINE, FASTER))
    plan = brought_in(mini, folder, releases=">=1.0")
    assert [row.releases for row in plan.rows] == [["1.0", "1.1"], ["1.0", "1.1", "1.2"]]
    assert (mini.root / "patches/series").read_text() == "choose\na <=1.1\nb\n"


def test_a_wheel_of_a_fork_is_built_again_byte_for_byte(mini: Miniature, elsewhere: Path) -> None:
    since = {f"sglang/since/{number}.py": b"SINCE = 1.1\n" for number in range(3)}
    mini.lock_release("1.1", upstream("1.1") | since | {"sglang/since.py": b"", "sglang/loader.txt": b"x\n"})
    theirs = (
        upstream("1.1")
        | since
        | {
            "sglang/loader.txt": b"y\n",
            FILE: LAST.encode(),
            ENGINE_FILE: FASTER.replace("hits += 1", "hits += 2").encode(),
            "sglang/deep/new.py": b"NEW = 1\n",
        }
    )
    theirs = {
        name.replace("sglang-1.1", "sglang_fork-7.0"): data
        for name, data in theirs.items()
        if name != "sglang/native.so"
    }
    wheel = write_wheel(elsewhere / "sglang_fork-7.0-py3-none-any.whl", theirs)
    plan = brought_in(mini, wheel, None)
    assert plan.base == "1.1"
    assert plan.base_note.endswith("differ: 6")
    assert outcomes(plan) == [
        (ENGINE_FILE, "brought in", "engine"),
        (FILE, "brought in", "loader"),
        ("sglang/loader.txt", "brought in", "loader-txt"),
        ("sglang/deep/new.py", "brought in", ""),
        ("sglang/since.py", "brought in", "since"),
        ("sglang/native.so", "left out", ""),
    ]
    for name in (ENGINE_FILE, "sglang/loader.txt", "sglang/deep/new.py"):
        assert in_wheel(mini, name, "1.1").encode() == theirs[name]
    assert in_wheel(mini, FILE, "1.1") == LAST.replace("(config):\n", "(config):\n    config = choose(config)\n")


def test_what_a_forks_wheel_has_beside_the_package_is_named(mini: Miniature, elsewhere: Path) -> None:
    points = b"[console_scripts]\nkt = kt_ops:main\n"
    theirs = {name.replace("sglang-1.0", "sglang_fork-7.0"): data for name, data in upstream("1.0").items()}
    theirs |= {"kt_ops/__init__.py": b"", "kt_ops/more.py": b"", "sglang_fork-7.0.dist-info/entry_points.txt": points}
    plan = planned(mini, write_wheel(elsewhere / "sglang_fork-7.0-py3-none-any.whl", theirs | {FILE: LAST.encode()}))
    assert outcomes(plan) == [
        (FILE, "brought in", "loader"),
        ("kt_ops", "left out", ""),
        ("entry_points.txt", "left out", ""),
    ]
    assert "kt_ops: it is outside sglang/" in notes(plan)


@pytest.mark.parametrize("repository", [True, False])
def test_a_checkout_is_compared_with_its_base(mini: Miniature, elsewhere: Path, repository: bool) -> None:
    mini.lock_release("1.1", upstream("1.1") | {"sglang/since.py": b"SINCE = 1.1\n"})
    fork = checkout(elsewhere)
    commit(fork, "Ours", {f"python/{FILE}": LAST, "python/sglang/_version.py": None, "python/sglang/native.so": None})
    write(fork, {"python/sglang/__pycache__/loader.pyc": b"\0", "python/sglang/ours.py": "OURS = 1\n"})
    if repository:
        write(fork, {"python/sglang/untracked.py": "not ours\n"})
        git(fork, "add", "python/sglang/ours.py")
    else:
        git(fork, "clean", "-ffdxq", ".git")
        (fork / ".git").rename(elsewhere / "git")
    plan = brought_in(mini, fork, None)
    assert plan.base == "1.0"
    assert outcomes(plan) == [(FILE, "brought in", "loader"), ("sglang/ours.py", "brought in", "")]
    assert plan.warnings == [
        "what a checkout requires is not compared: import its wheel, or see its pyproject.toml yourself"
    ]


def test_what_git_has_not_checked_out_is_not_taken_for_deleted(mini: Miniature, elsewhere: Path) -> None:
    fork, skipped = checkout(elsewhere), [ENGINE_FILE, "sglang/version.py"]
    commit(fork, "Ours", {f"python/{FILE}": LAST})
    git(fork, "sparse-checkout", "set", "--no-cone", "/*", *(f"!/python/{name}" for name in skipped))
    with pytest.raises(WorktreeError, match=r"is a sparse checkout: it lacks sglang/engine\.py and 1 more\.") as caught:
        planned(mini, fork)
    assert f"`git -C {fork} sparse-checkout disable`" in caught.value.hint
    with pytest.raises(WorktreeError, match=r"it lacks sglang/version\.py\."):
        plan_import(mini.project, mini.cache, fork, "1.0", None, [ENGINE_FILE])
    plan = plan_import(mini.project, mini.cache, fork, "1.0", None, skipped)
    assert outcomes(plan) == [(FILE, "brought in", "loader")]


def test_line_ends_that_git_has_converted_are_not_brought_in(mini: Miniature, elsewhere: Path) -> None:
    fork = checkout(elsewhere)
    attributes = {".gitattributes": "*.bat text eol=crlf\n", "python/sglang/run.bat": "echo\n"}
    commit(fork, "Ours", {f"python/{FILE}": LAST, **attributes})
    clones = {each: elsewhere / each for each in ("true", "false")}
    for each, clone in clones.items():
        git(elsewhere, "clone", "--quiet", "-c", f"core.autocrlf={each}", fork, clone)
    with pytest.raises(WorktreeError, match=r"sglang/__init__\.py ends its lines with CRLF") as caught:
        planned(mini, clones["true"])
    assert f"`git clone -c core.autocrlf=false {clones['true']} FOLDER`" in caught.value.hint
    plan = brought_in(mini, clones["false"])
    assert outcomes(plan) == [(FILE, "brought in", "loader"), ("sglang/run.bat", "brought in", "")]


@pytest.mark.parametrize("below", ["vendor/sglang/python", "vendor/sglang", "vendor/sglang/python/sglang"])
def test_the_repository_of_a_fork_may_begin_above_it(mini: Miniature, elsewhere: Path, below: str) -> None:
    made, mono = checkout(elsewhere), elsewhere / "mono"
    (made / ".git").rename(elsewhere / "git")
    git(elsewhere, "init", "--quiet", mono)
    (mono / "vendor").mkdir()
    made.rename(mono / "vendor/sglang")
    commit(mono, "Ours", {f"vendor/sglang/python/{FILE}": LAST})
    write(mono, {"vendor/sglang/python/sglang/untracked.py": "not ours\n"})
    assert outcomes(planned(mini, mono / below)) == [(FILE, "brought in", "loader")]


def test_an_installation_that_a_repository_ignores_is_one(mini: Miniature, elsewhere: Path) -> None:
    git(elsewhere, "init", "--quiet")
    write(elsewhere, {".gitignore": ".venv\n"})
    write(elsewhere / ".venv", upstream() | {FILE: LAST, "sglang/ours.py": "OURS = 1\n"})
    plan = planned(mini, elsewhere / ".venv")
    assert outcomes(plan) == [(FILE, "brought in", "loader"), ("sglang/ours.py", "brought in", "")]


def test_what_is_a_link_in_a_checkout_is_named_and_not_deleted(mini: Miniature, elsewhere: Path) -> None:
    fork = checkout(elsewhere)
    commit(fork, "Ours", {f"python/{FILE}": LAST, "python/sglang/version.py": None, "python/real.py": "x = 1\n"})
    for name in ("version.py", "ours.py"):
        (fork / "python/sglang" / name).symlink_to("../real.py")
    git(fork, "add", "--all")
    plan = planned(mini, fork)
    links = ["sglang/ours.py", "sglang/version.py"]
    assert outcomes(plan) == [(FILE, "brought in", "loader"), *((name, "left out", "") for name in links)]
    assert notes(plan) == "\n".join(f"{name}: it is a link, which a wheel cannot hold" for name in links)


def test_what_a_patch_makes_a_link_is_named_and_not_deleted(mini: Miniature, elsewhere: Path) -> None:
    mini.lock_release("1.0", upstream() | {"sglang/kept/a.py": b"A = 1\n"})
    fork, links = checkout(elsewhere), ["sglang/kept", "sglang/version.py"]
    commit(fork, "More", {"python/sglang/kept/a.py": "A = 1\n"})
    for name in links:
        git(fork, "rm", "-r", "--quiet", f"python/{name}")
        (fork / "python" / name).symlink_to("../real")
    commit(fork, "Ours", {f"python/{FILE}": LAST})
    plan = brought_in(mini, mailed(fork, 1, one=True))
    assert outcomes(plan) == [("ours.mbox", "in part", "ours")]
    assert notes(plan) == "\n".join(f"{name}: it is a link, which a wheel cannot hold" for name in links)
    assert in_wheel(mini, "sglang/version.py").encode() == upstream()["sglang/version.py"]
    assert in_wheel(mini, "sglang/kept/a.py") == "A = 1\n"


def test_files_of_a_fork_can_be_left_alone(
    mini: Miniature, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = upstream() | {FILE: LAST.encode(), ENGINE_FILE: FASTER.encode(), "sglang/big/new.py": b"NEW = 1\n"}
    wheel = write_wheel(elsewhere / "sglang-1.0-py3-none-any.whl", theirs)
    words = ["import", str(wheel), "--exclude", "sglang/big", "--exclude", "sglang/l*.py", "--yes"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "1 brought in, 0 in part, 0 there already, 0 conflict, 0 left out" in said
    assert not (mini.root / "overlay/sglang/big").exists()
    assert cli.main([*words, "--exclude", "python/sglang/big", "--exclude", "sglang/native.so"]) == 2
    error = capsys.readouterr().err
    assert f"error: --exclude python/sglang/big matches no file of {wheel} or of sglang 1.0." in error
    assert "native.so" not in error


def test_a_new_file_that_no_wheel_would_hold_is_not_brought_in(mini: Miniature, elsewhere: Path) -> None:
    fork = checkout(elsewhere)
    commit(fork, "An editor's", {"python/sglang/models/ours.py~": "OURS = 2\n"})
    plan = planned(mini, mailed(fork, 1))
    assert [row.outcome for row in plan.rows] == ["left out"]
    assert "sglang/models/ours.py~: it would go into no wheel" in notes(plan)


def test_new_files_with_which_no_wheel_could_be_built_are_left_out(mini: Miniature, elsewhere: Path) -> None:
    fork = checkout(elsewhere)
    names = ("bench-all.py", "loader.py.orig", "a\\b.txt", "zwei\nZeilen.txt", "gr\udcf6\udcdfe.txt")
    write(fork / "python/sglang", {**dict.fromkeys(names, "x = 1\n"), "good.py": "x = 1\n"})
    git(fork, "add", "--all")
    plan = brought_in(mini, fork)
    assert {row.title: row.outcome for row in plan.rows} == {
        **{f"sglang/{name}": "left out" for name in names},
        "sglang/good.py": "brought in",
    }
    assert "sglang/bench-all.py: it would go into no wheel: a module cannot be named 'bench-all'" in notes(plan)


def test_what_stands_in_the_way_of_a_new_file_is_named(mini: Miniature, elsewhere: Path) -> None:
    mini.lock_release("1.1", upstream("1.1") | {"sglang/since.py": b"SINCE = 1.1\n"})
    fork = checkout(elsewhere)
    commit(fork, "Ours", {"python/sglang/models/ours.py": "OURS = 2\n"})
    commit(fork, "Hidden", {"python/sglang/.hidden": "1\n"})
    commit(fork, "Since", {"python/sglang/since.py": "SINCE = 1.0\n"})
    plan = planned(mini, mailed(fork, 3))
    assert [row.outcome for row in plan.rows] == ["conflict", "left out", "brought in"]
    assert "overlay/sglang/models/ours.py exists with another content" in notes(plan)
    assert "sglang/.hidden: it would go into no wheel" in notes(plan)


def test_new_files_go_to_the_base_alone(mini: Miniature, elsewhere: Path) -> None:
    mini.lock_release("1.1", upstream("1.1") | {"sglang/since.py": b"SINCE = 1.1\n"})
    fork = checkout(elsewhere)
    commit(fork, "Since", {"python/sglang/since.py": "SINCE = 1.0\n", "python/sglang/ours.py": "OURS = 1\n"})
    plan = brought_in(mini, mailed(fork, 1))
    (row,) = plan.rows
    assert (row.releases, row.added) == (["1.0"], ["sglang/ours.py", "sglang/since.py"])
    assert plan.settings.kept == ["sglang 1.1 has its own sglang/since.py, and keeps what it has."]
    assert in_wheel(mini, "sglang/since.py") == "SINCE = 1.0\n"
    assert in_wheel(mini, "sglang/since.py", "1.1") == "SINCE = 1.1\n"
    with pytest.raises(KeyError):
        in_wheel(mini, "sglang/ours.py", "1.1")


def test_what_other_releases_have_under_the_same_names_is_said(mini: Miniature, elsewhere: Path) -> None:
    models, configs = "sglang/srt/models", "sglang/srt/configs"
    theirs = {
        f"{models}/theirs.py": b"\nclass ForkForCausalLM: ...\nEntryClass = ForkForCausalLM\n",
        f"{configs}/theirs.py": b"class TheirConfig:\n    model_type = 'fork'\n",
    }
    mini.lock_release("1.1", upstream("1.1") | theirs)
    fork = checkout(elsewhere)
    ours = {
        f"python/{models}/ours.py": "class ForkForCausalLM: ...\nclass B: ...\nEntryClass = [ForkForCausalLM, B]\n",
        f"python/{configs}/ours.py": "class ForkConfig:\n    model_type = 'fork'\n",
    }
    commit(fork, "A model", ours)
    assert planned(mini, mailed(fork, 1)).warnings == [
        f"{configs}/ours.py: model_type fork: upstream has one in 1.1: {configs}/theirs.py:2",
        f"{models}/ours.py: architecture ForkForCausalLM: upstream has one in 1.1: {models}/theirs.py:2",
    ]


@pytest.mark.parametrize(("releases", "range_"), [("all", ""), (">=1.1", ""), ("==1.0", "<=1.0")])
def test_new_files_go_to_other_releases_that_have_none_of_the_name(
    mini: Miniature, elsewhere: Path, releases: str, range_: str
) -> None:
    mini.lock_release("1.1", upstream("1.1") | {"sglang/since.py": b"SINCE = 1.1\n"})
    fork = checkout(elsewhere)
    commit(fork, "Since", {"python/sglang/since.py": "SINCE = 1.0\n", "python/sglang/ours.py": "OURS = 1\n"})
    brought_in(mini, mailed(fork, 1), releases=releases)
    said = {row.pattern: str(row.releases) for row in mini.project.files}
    assert said == {"sglang/since.py": "<=1.0"} | ({"sglang/ours.py": range_} if range_ else {})


def test_what_a_fork_requires_is_brought_in(
    mini: Miniature, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = upstream() | {FILE: LAST.encode()}
    name = "sglang-1.0.dist-info/METADATA"
    theirs[name] = (
        theirs[name].replace(b"numpy ;", b"numpy>=2 ;").replace(b"Provides", b"Requires-Dist: kt==1\nProvides")
    )
    wheel = write_wheel(elsewhere / "sglang-1.0-py3-none-any.whl", theirs)
    assert cli.main(["import", str(wheel), "--base", "1.0", "--yes"]) == 0
    said = capsys.readouterr().out
    assert "sglang 1.0 requires kt==1\n" in said
    assert "Requires-Dist: kt==1\n" in in_wheel(mini, "sglang-1.0+overlay.3.dist-info/METADATA")
    assert "numpy>=2" in in_wheel(mini, "sglang-1.0+overlay.3.dist-info/METADATA")
    assert "kt==1" not in in_wheel(mini, "sglang-1.1+overlay.3.dist-info/METADATA", "1.1")
    before = mini.content()
    assert cli.main(["import", str(wheel), "--base", "1.0", "--yes"]) == 0
    assert "Nothing was written" in capsys.readouterr().out
    assert mini.content() == before


@pytest.mark.parametrize("below", ["", "sglang"])
def test_an_unpacked_wheel_is_a_fork_with_what_it_requires(mini: Miniature, elsewhere: Path, below: str) -> None:
    theirs = upstream() | {FILE: LAST.encode(), "other/__init__.py": b""}
    metadata = "sglang_fork-1.0.dist-info/METADATA"
    theirs = {name.replace("sglang-1.0", "sglang_fork-1.0"): data for name, data in theirs.items()}
    theirs[metadata] = theirs[metadata].replace(b"numpy ;", b"numpy>=2 ;")
    del theirs["sglang/native.so"]
    with zipfile.ZipFile(write_wheel(elsewhere / "sglang_fork-1.0-py3-none-any.whl", theirs)) as archive:
        archive.extractall(elsewhere / "site-packages")
    write(elsewhere / "site-packages", {"sglang/__pycache__/loader.pyc": b"\0", "another-1.dist-info/RECORD": "x,,\n"})
    plan = planned(mini, elsewhere / "site-packages" / below, None)
    assert plan.base == "1.0"
    assert [row.title for row in plan.rows if row.outcome != "left out"] == [FILE]
    assert plan.settings.requirements == ['requires numpy>=2; extra == "all"']


def test_another_release_takes_a_hook_only_with_those_that_it_needs(mini: Miniature, elsewhere: Path) -> None:
    mini.lock_release("1.1", upstream("1.1") | {FILE: LOADER.replace("return 3", "return 9").encode()})
    fork = checkout(elsewhere)
    commit(fork, "Count", {f"python/{FILE}": LOADER.replace("return 3", "return count_of_it")})
    commit(fork, "Use it", {f"python/{ENGINE_FILE}": ENGINE.replace("hits += 1", "hits += count_of_it")})
    plan = brought_in(mini, mailed(fork, 2), releases="all")
    assert [row.releases for row in plan.rows] == [["1.0"], ["1.0"]]
    assert ("use-it", "1.1", "not due: it may need count, which is not there") in plan.decisions


def test_the_same_import_again_says_that_it_is_there(
    mini: Miniature, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fork = checkout(elsewhere)
    five = LAST.replace("return 4", "return 5")
    commit(fork, "Four", {f"python/{FILE}": LAST, "python/sglang/new.py": "NEW = 1\n"})
    commit(fork, "Five", {f"python/{FILE}": five, "python/sglang/new.py": "NEW = 2\n"})
    commit(fork, "New alone", {"python/sglang/newer.py": "NEWER = 2\n"})
    commit(fork, "Ours too", {"python/sglang/newer.py": "NEWER = 3\n"})
    brought_in(mini, mailed(fork, 4))
    before = mini.content()
    assert cli.main(["import", str(mailed(fork, 4)), "--yes"]) == 0
    said = capsys.readouterr().out
    assert "0 brought in, 0 in part, 4 there already, 0 conflict, 0 left out" in said
    assert "Nothing was written: all that can be brought in is there already.\n" in said
    assert mini.content() == before
    commit(fork, "Six", {f"python/{FILE}": five.replace("return 5", "return 6")})
    plan = brought_in(mini, mailed(fork, 5))
    assert [row.outcome for row in plan.rows] == ["there already"] * 4 + ["brought in"]
    assert "return 6" in in_wheel(mini, FILE)


def test_what_is_left_out_is_not_said_to_be_there(
    mini: Miniature, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fork = checkout(elsewhere)
    commit(fork, "Four", {f"python/{FILE}": LAST})
    commit(fork, "Tests alone", {"test/test_loader.py": "def test(): assert 1\n"})
    brought_in(mini, mailed(fork, 2))
    assert cli.main(["import", str(mailed(fork, 2)), "--yes"]) == 0
    said = capsys.readouterr().out
    assert "Nothing was written: all that can be brought in is there already. Left out: 1 of 2.\n" in said


def test_a_file_that_began_empty_is_there_already_too(mini: Miniature, elsewhere: Path) -> None:
    fork = checkout(elsewhere)
    commit(fork, "Empty", {"python/sglang/kt/__init__.py": ""})
    commit(fork, "Filled", {"python/sglang/kt/__init__.py": "KT = 1\n"})
    mails = mailed(fork, 2)
    brought_in(mini, mails)
    assert [row.outcome for row in planned(mini, mails).rows] == ["there already"] * 2


def test_a_matter_of_taste_is_brought_in_to_the_byte(mini: Miniature, elsewhere: Path) -> None:
    theirs = LOADER.replace("return 3\n", "return 3 \t\r\n")
    (row,) = brought_in(mini, difference(elsewhere, "blank", loader=(LOADER, theirs))).rows
    assert row.outcome == "brought in"
    assert "    return 3 \t\r\n" in in_wheel(mini, FILE)


def test_lines_that_stand_twice_are_changed_where_the_patch_says(mini: Miniature, elsewhere: Path) -> None:
    twin = "    x = 1\n    x = 2\n    x = 3\n    x = 4\n    x = 5\n    x = 6\n    x = 7\n"
    text = f"{LOADER}\n\ndef a():\n{twin}\n\ndef b():\n{twin}"
    head, _, tail = text.rpartition("x = 4")
    for version in ("1.0", "1.1"):
        mini.lock_release(version, upstream(version) | {FILE: text.encode()})
    folder = elsewhere / "ours"
    folder.mkdir()
    longer, head = (part.replace("return 1", "print()\n    return 1") for part in (text, head))
    difference(folder, "1", loader=(text, longer))
    difference(folder, "2", loader=(longer, f"{head}x = 44{tail}"))
    plan = brought_in(mini, folder)
    assert [row.outcome for row in plan.rows] == ["brought in", "brought in"]
    assert in_wheel(mini, FILE).endswith(f"x = 44{tail}")
    assert in_wheel(mini, FILE).count("x = 44") == 1


def test_one_mail_is_read_and_conflicts_name_its_line(mini: Miniature, elsewhere: Path) -> None:
    fork = checkout(elsewhere)
    commit(fork, "Broken", {f"python/{FILE}": LAST.replace("def last", "def first")})
    commit(fork, "Größer\n\nIt was small.", {f"python/{FILE}": LAST.replace("def last", "def först")})
    (elsewhere / "one.eml").write_text(mailed(fork, 1, one=True).read_text().partition("\n")[2])
    for source in (elsewhere / "one.eml", mailed(fork, 1, one=True)):
        line = next(n for n, line in enumerate(source.read_text().split("\n"), 1) if line.startswith("@@ "))
        plan = planned(mini, source)
        assert [row.outcome for row in plan.rows] == ["conflict"]
        assert f"{source}:{line}: " in notes(plan)
    commit(fork, "Back", {f"python/{FILE}": LOADER})
    commit(fork, "Größer\n\nIt was small.", {f"python/{FILE}": LAST})
    (elsewhere / "one.eml").write_text(mailed(fork, 1, one=True).read_text().partition("\n")[2])
    assert [row.hook for row in brought_in(mini, elsewhere / "one.eml").rows] == ["gr-er"]
    assert load_series(mini.root / "patches")[-1].variants[0].header["Why"] == "It was small."


def test_a_file_that_a_patch_changes_twice_is_changed_twice(mini: Miniature, elsewhere: Path) -> None:
    source = difference(elsewhere, "four", loader=(LOADER, LAST))
    five = LAST.replace("return 4", "return 5").replace("return 1", "return 2")
    other = difference(elsewhere, "five", loader=(LAST, five))
    source.write_text(source.read_text() + other.read_text())
    (row,) = brought_in(mini, source).rows
    assert (row.outcome, row.lines) == ("brought in", "+2/-2")
    assert in_wheel(mini, FILE) == five.replace("(config):\n", "(config):\n    config = choose(config)\n")


def test_a_plain_diff_and_a_header_like_ours_are_read(mini: Miniature, elsewhere: Path) -> None:
    git_diff = difference(elsewhere, "four", loader=(LOADER, LAST)).read_text()
    plain = git_diff[git_diff.index("--- ") :].replace(f"a/python/{FILE}", f"a/python/{FILE}\t2026-01-01 10:00:00")
    head = "Subject: Of ours\nWhy: so that\n it is four\nForwarded: perhaps\nRemove-When: never\n\n"
    (elsewhere / "plain.patch").write_text(head + plain)
    plan = brought_in(mini, elsewhere / "plain.patch")
    assert outcomes(plan) == [("plain.patch", "brought in", "of-ours")]
    header = load_series(mini.root / "patches")[-1].variants[0].header
    assert (header["Subject"], header["Why"], header["Remove-When"]) == ("Of ours", "so that it is four", "never")
    assert header["Forwarded"] == "no: TO BE FILLED"


def test_the_end_of_a_file_stays_as_the_patch_has_it(mini: Miniature, elsewhere: Path) -> None:
    new = difference(elsewhere, "new", new=(None, "A = 1\nB = 2"))
    brought_in(mini, new)
    assert (mini.root / "overlay/sglang/new.py").read_text() == "A = 1\nB = 2"
    brought_in(mini, difference(elsewhere, "ended", new=("A = 1\nB = 2", "A = 1\nB = 3\n")))
    assert (mini.root / "overlay/sglang/new.py").read_text() == "A = 1\nB = 3\n"


@pytest.mark.parametrize("form", ["plain", "mailbox", "mail", "encoded", "shown"])
def test_a_line_that_the_counts_of_a_hunk_leave_out_is_refused(mini: Miniature, elsewhere: Path, form: str) -> None:
    fork = checkout(elsewhere)
    commit(fork, "Bigger", {f"python/{ENGINE_FILE}": FASTER})
    commit(fork, "Four", {f"python/{FILE}": LAST})
    text = {"plain": git(fork, "diff", "HEAD~2"), "shown": git(fork, "log", "-p", "-2")}.get(
        form, mailed(fork, 2, one=True).read_text()
    )
    if form == "mail":
        text = git(fork, "format-patch", "--stdout", "-1").partition("\n")[2]
    text = text.replace("+    return 4\n", "+    return 4\n+two = 2\n")
    where = f"{elsewhere / 'ours.patch'}:{text[: text.index('+two')].count(chr(10)) + 1}: "
    if form == "encoded":
        head, _, body = text.rpartition("\n\n---\n")
        text = f"{head}\nContent-Transfer-Encoding: base64\n\n{base64.encodebytes(body.encode()).decode()}"
        where = "ours.patch 2/2 (its diff, decoded):11: "
    (elsewhere / "ours.patch").write_text(text)
    with pytest.raises(PatchError) as caught:
        planned(mini, elsewhere / "ours.patch")
    assert str(caught.value).startswith(f"{where}by its @@ the hunk above ends before '+two = 2': ")


@pytest.mark.parametrize(
    "words",
    [
        ["format-patch", "--stdout", "--base=HEAD~2"],
        ["log", "-p", "--oneline"],
        ["log", "-p", "--abbrev-commit", "--stat"],
    ],
)
def test_what_git_writes_between_diffs_is_no_part_of_a_hunk(mini: Miniature, elsewhere: Path, words: list[str]) -> None:
    fork = checkout(elsewhere)
    commit(fork, "Four", {f"python/{FILE}": LAST.removesuffix("\n")})
    commit(fork, "Five\n\n- It was less.", {f"python/{FILE}": LAST.replace("return 4", "return 5")})
    options = ["--reverse"] if words[0] == "log" else []
    (elsewhere / "ours.patch").write_text(git(fork, *words, *options, "-2"))
    assert {row.outcome for row in planned(mini, elsewhere / "ours.patch").rows} == {"brought in"}


def test_a_name_that_is_taken_gets_a_number(mini: Miniature, elsewhere: Path) -> None:
    plan = brought_in(mini, difference(elsewhere, "choose", loader=(LOADER, LAST)))
    assert [row.hook for row in plan.rows] == ["choose-2"]
    assert (mini.root / "patches/choose-2/1.0.patch").is_file()


def test_nothing_is_written_unless_someone_agrees(
    mini: Miniature, elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(question: str) -> str:
        raise EOFError

    source = str(difference(elsewhere, "four", loader=(LOADER, LAST)))
    before = mini.content()
    assert cli.main(["import", source]) == 1
    said = capsys.readouterr()
    assert "four.patch" in said.out
    assert "Nothing was written: no one is here to ask." in said.err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert cli.main(["import", source]) == 1
    monkeypatch.setattr("builtins.input", closed)
    assert cli.main(["import", source]) == 1
    assert mini.content() == before
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert cli.main(["import", source]) == 0
    assert mini.content() != before


@pytest.mark.parametrize("name", ["pyproject.toml", "patches/mine/1.0.patch"])
def test_what_changes_while_it_asks_is_not_overwritten(
    mini: Miniature, elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    after: dict[str, bytes] = {}

    def change(_: str) -> str:
        path = mini.root / name
        mini.write(name, (path.read_text() if path.exists() else "") + "# mine\n")
        after.update(mini.content())
        return "y"

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", change)
    assert cli.main(["import", str(difference(elsewhere, "four", loader=(LOADER, LAST)))]) == 1
    assert f"{name} has changed since it was read." in capsys.readouterr().err
    assert mini.content() == after


@pytest.mark.parametrize("after", ["NEW = 2\n", None], ids=["changed", "deleted"])
def test_a_file_of_other_releases_is_left_alone(mini: Miniature, elsewhere: Path, after: str | None) -> None:
    brought_in(mini, difference(elsewhere, "new", new=(None, "NEW = 1\n")), "1.1")
    before = mini.content()
    source = difference(elsewhere, "again", new=("NEW = 1\n", after))
    plan = planned(mini, source)
    assert [row.outcome for row in plan.rows] == ["conflict"]
    assert "sglang/new.py is in overlay/ for other releases: let sglang 1.0 take it too" in notes(plan)
    assert cli.main(["import", str(source), "--base", "1.0", "--yes"]) == 1
    assert mini.content() == before
    assert [row.outcome for row in planned(mini, source, "1.1").rows] == ["brought in"]


def test_a_new_file_that_only_other_releases_have_is_not_there_already(
    mini: Miniature, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = difference(elsewhere, "new", new=(None, "NEW = 1\n"))
    brought_in(mini, source, "1.1")
    before = mini.content()
    assert cli.main(["import", str(source), "--base", "1.0", "--yes"]) == 1
    said = capsys.readouterr()
    assert "1 conflict" in said.out
    assert "sglang/new.py is in overlay/ for other releases: let sglang 1.0 take it too" in said.err
    assert mini.content() == before


def test_a_conflict_without_a_marker_is_one(
    mini: Miniature, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fork = checkout(elsewhere)
    commit(fork, "Changed", {f"python/{ENGINE_FILE}": FASTER})
    commit(fork, "Gone", {f"python/{ENGINE_FILE}": None})
    commit(fork, "Four", {f"python/{FILE}": LAST})
    assert cli.main(["import", str(mailed(fork, 2)), "--base", "1.0", "--yes"]) == 1
    assert "Gone.patch: to be settled: sglang/engine.py is not as the patch found it" in capsys.readouterr().err
    tree = mini.root / ".nox/worktrees/1.0"
    assert git(tree, "log", "--format=%s", "overlay..").splitlines() == ["Four", "Let the overlay choose"]


def test_a_source_of_which_nothing_fits_is_a_failure(
    mini: Miniature, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = mini.content()
    fork = checkout(elsewhere)
    commit(fork, "Tests alone", {"test/test_loader.py": "def test(): assert 1\n"})
    assert cli.main(["import", str(mailed(fork, 1)), "--yes"]) == 1
    assert "Nothing of" in capsys.readouterr().err
    assert mini.content() == before


@pytest.mark.parametrize("kind", ["mail", "folder", "plain", "no-prefix", "wheel-paths", "shown", "crlf", "quilt"])
def test_a_patch_is_read_however_it_was_sent(mini: Miniature, elsewhere: Path, kind: str) -> None:
    fork = checkout(elsewhere)
    commit(fork, "Größer\n\nIt was small.", {f"python/{ENGINE_FILE}": FASTER, "python/sglang/größe.txt": "acht\n"})
    mail = mailed(fork, 1, one=True)
    source = {"mail": mail, "folder": elsewhere / "mails", "quilt": elsewhere / "quilt"}.get(
        kind, elsewhere / "a.patch"
    )
    if kind == "folder":
        mailed(fork, 1)
    elif kind == "plain":
        source.write_text(git(fork, "diff", "HEAD~"))
    elif kind == "no-prefix":
        source.write_text(git(fork, "diff", "--no-prefix", "HEAD~"))
    elif kind == "wheel-paths":
        source.write_text(git(fork, "diff", "--relative=python", "HEAD~"))
    elif kind == "shown":
        source.write_text(git(fork, "log", "-p", "-1"))
    elif kind == "crlf":
        source.write_bytes(mail.read_bytes().replace(b"\n", b"\r\n"))
    elif kind == "quilt":
        write(source, {"patches.txt": "", "series": "# ours\n\nbigger.diff -p1 # as quilt has it\n"})
        write(source, {"bigger.diff": f"Subject: Größer\n\nIt was small.\n\n---\n{git(fork, 'diff', 'HEAD~')}"})
    (row,) = brought_in(mini, source).rows
    assert (row.outcome, row.added) == ("brought in", ["sglang/größe.txt"])
    assert in_wheel(mini, ENGINE_FILE) == FASTER
    assert in_wheel(mini, "sglang/größe.txt") == "acht\n"
    if kind in ("mail", "folder", "shown", "crlf", "quilt"):
        header = load_series(mini.root / "patches")[-1].variants[0].header
        assert (header["Subject"], header["Why"]) == ("Größer", "It was small.")


def test_commits_that_git_shows_are_patches_each(mini: Miniature, elsewhere: Path) -> None:
    fork = checkout(elsewhere)
    commit(fork, "Four", {f"python/{FILE}": LAST})
    commit(fork, "Five\n\nHook: of-five", {f"python/{FILE}": LAST.replace("return 4", "return 5")})
    (elsewhere / "both.patch").write_text(git(fork, "log", "-p", "--reverse", "-2"))
    plan = brought_in(mini, elsewhere / "both.patch")
    assert outcomes(plan) == [("both.patch 1/2", "brought in", "four"), ("both.patch 2/2", "brought in", "of-five")]


@pytest.mark.parametrize("form", ["--cc", "-c"])
def test_what_a_merge_makes_is_named_as_that(mini: Miniature, elsewhere: Path, form: str) -> None:
    fork = checkout(elsewhere)
    git(fork, "checkout", "--quiet", "-b", "side")
    commit(fork, "Side", {f"python/{FILE}": LAST, "README.md": "side\n", "python/sglang/native.so": b"\0side"})
    git(fork, "checkout", "--quiet", "main")
    commit(fork, "Main", {f"python/{ENGINE_FILE}": FASTER})
    git(fork, "merge", "--quiet", "--no-commit", "side")
    five = LAST.replace("return 4", "return 5")
    commit(fork, "Merge", {f"python/{FILE}": five, "python/sglang/native.so": b"\0merged", "README.md": "merged\n"})
    (elsewhere / "all.patch").write_text(git(fork, "show", form, "HEAD") + git(fork, "show", "HEAD^1"))
    plan = planned(mini, elsewhere / "all.patch")
    assert outcomes(plan) == [("all.patch 1/2", "left out", ""), ("all.patch 2/2", "brought in", "main")]
    why = "it is of a merge: `git diff PARENT MERGE` gives all that it makes as one patch"
    assert plan.rows[0].notes == [
        "README.md: it is outside the wheel",
        f"{FILE}: {why}",
        f"sglang/native.so: {why}",
    ]


def test_no_file_of_a_patch_is_left_out_whatever_wrote_it(mini: Miniature, elsewhere: Path) -> None:
    fork = checkout(elsewhere)
    commit(fork, "Four", {f"python/{FILE}": LAST, f"python/{ENGINE_FILE}": FASTER})
    first, second = (git(fork, "diff", "HEAD~", "--", f"python/{name}") for name in (FILE, ENGINE_FILE))
    plain = f"Index: engine\n{'=' * 67}\n{second[second.index('--- ') :]}"  # as quilt writes it
    for number, text in enumerate((f"\ufeff{first}{second}", plain + first, first + plain)):
        source = elsewhere / f"{number}.patch"
        source.write_text(text, encoding="utf-8")
        plan = planned(mini, source)
        assert outcomes(plan) == [(source.name, "brought in", source.stem)]
        hook = plan.patches[f"{source.stem}/1.0.patch"]
        assert f"+++ b/{FILE}\n" in hook
        assert f"+++ b/{ENGINE_FILE}\n" in hook


@pytest.mark.parametrize("zone", ["UTC", "EST5"])
def test_files_that_diff_adds_and_deletes_are_known_by_their_time(mini: Miniature, elsewhere: Path, zone: str) -> None:
    before, after = elsewhere / "a", elsewhere / "b"
    write(before, {FILE: LOADER, "sglang/version.py": upstream()["sglang/version.py"]})
    write(after, {FILE: LAST, "sglang/new.py": "NEW = 1\n"})
    words = ["diff", "-ruN", "a", "b"]
    done = subprocess.run(words, cwd=elsewhere, env={**os.environ, "TZ": zone}, capture_output=True, check=False)
    (elsewhere / "all.patch").write_bytes(done.stdout)
    plan = planned(mini, elsewhere / "all.patch")
    assert outcomes(plan) == [("all.patch", "brought in", "all")]
    assert plan.rows[0].added == ["sglang/new.py"]
    assert "deleted file mode 100644" in plan.patches["all/1.0.patch"]


@pytest.mark.parametrize(
    ("old", "new"), [("sglang.orig", "sglang"), ("sglang-1.0", "sglang-1.0-ours"), ("i", "w"), ("a", "sglang")]
)
def test_a_patch_of_two_folders_is_that_of_what_is_in_them(
    mini: Miniature, elsewhere: Path, old: str, new: str
) -> None:
    """As quilt and `diff -ruN` compare clones, whatever these are called."""
    write(elsewhere / old, {f"python/{FILE}": LOADER, "test/test_a.py": "A = 1\n"})
    write(elsewhere / new, {f"python/{FILE}": LAST, "python/sglang/new.py": "NEW = 1\n", "test/test_a.py": "A = 2\n"})
    done = subprocess.run(["diff", "-ruN", old, new], cwd=elsewhere, capture_output=True, check=False)
    (elsewhere / "all.patch").write_bytes(done.stdout)
    plan = planned(mini, elsewhere / "all.patch")
    assert outcomes(plan) == [("all.patch", "in part", "all")]
    assert plan.rows[0].added == ["sglang/new.py"]
    assert f"+++ b/{FILE}\n" in plan.patches["all/1.0.patch"]
    assert "test/test_a.py: it is outside the wheel" in notes(plan)


def test_a_patch_of_two_packages_is_that_of_one(mini: Miniature, elsewhere: Path) -> None:
    write(elsewhere / "sglang.orig", {"loader.py": LOADER})
    write(elsewhere / "sglang", {"loader.py": LAST, "new.py": "NEW = 1\n"})
    done = subprocess.run(["diff", "-ruN", "sglang.orig", "sglang"], cwd=elsewhere, capture_output=True, check=False)
    (elsewhere / "all.patch").write_bytes(done.stdout)
    plan = planned(mini, elsewhere / "all.patch")
    assert outcomes(plan) == [("all.patch", "brought in", "all")]
    assert plan.rows[0].added == ["sglang/new.py"]


def test_lines_without_context_are_not_put_anywhere(mini: Miniature, elsewhere: Path) -> None:
    fork = checkout(elsewhere)
    commit(fork, "Two", {f"python/{FILE}": LOADER.replace("    return 1\n", "    print()\n    return 1\n")})
    (elsewhere / "bare.patch").write_text(git(fork, "diff", "-U0", "HEAD~"))
    plan = planned(mini, elsewhere / "bare.patch")
    assert [row.outcome for row in plan.rows] == ["conflict"]
    assert notes(plan).startswith(
        f"{elsewhere / 'bare.patch'}:5: the hunk of line 1 of sglang/loader.py has no context"
    )
    (marked,) = plan.marked
    assert b"def other():\n<<<<<<< sglang 1.0, with the hooks\n=======\n    print()\n>>>>>>> " in marked.files[FILE]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent.patch"], "There is no file or folder"),
        (["empty"], "There is no patch in"),
        (["text.patch"], "is not a patch: there is no diff in it"),
        (["short.patch"], "the diff cannot be read"),
        (["listed"], "lists absent.patch, which is not there"),
        (["other-1.0-py3-none-any.whl"], "is not a fork of SGLang"),
        (["text.whl"], "cannot be read as a wheel"),
        (["fork-1.0.tar.gz"], "fork-1.0.tar.gz is an archive"),
        (["good.patch", "--base", "9.9"], "holds no release '9.9'"),
        (["good.patch", "--releases", "new"], "'new' is not a range of releases"),
        (["good.patch", "--exclude", "x"], "--exclude goes with a fork only"),
        (["same-1.0-py3-none-any.whl"], "does not differ from sglang 1.0"),
    ],
)
def test_bad_input_is_one_error(
    mini: Miniature, elsewhere: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = difference(elsewhere, "good", loader=(LOADER, LAST)).read_text()
    write(elsewhere, {"text.patch": "hello\n", "text.whl": "hello\n", "empty/none.txt": "", "short.patch": good[:-20]})
    write(
        elsewhere,
        {
            "fork-1.0.tar.gz": b"\x1f\x8b",
            "listed/series": "absent.patch\n",
            "short.patch": good.rsplit("\n", 3)[0] + "\n",
        },
    )
    write_wheel(elsewhere / "other-1.0-py3-none-any.whl", {"other/x.py": b"", "other-1.0.dist-info/METADATA": b""})
    write_wheel(elsewhere / "same-1.0-py3-none-any.whl", upstream())
    before = mini.content()
    assert cli.main(["import", str(elsewhere / words[0]), *words[1:], "--yes"]) in (1, 2)
    error = capsys.readouterr().err
    assert said in error
    assert error.count("error: ") == 1
    assert mini.content() == before
