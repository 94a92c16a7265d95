from __future__ import annotations

from pathlib import Path

import pytest
from overlay_tools import cli
from overlay_tools.downstream.edit import edit
from overlay_tools.patches.series import load_series

from unit.conftest import ENGINE, LOADER, Miniature
from unit.downstream.foreign import (
    ENGINE_FILE,
    FASTER,
    FILE,
    LAST,
    checkout,
    commit,
    difference,
    git,
    in_wheel,
    mailed,
    notes,
    planned,
    upstream,
    write,
)

NEWER = ENGINE.replace("        self.hits += 1\n", "        self.hits.add(1)\n        log(key)\n")
SIZED = NEWER.replace("log(key)", "log(key, size_of_it)").replace("strict=True", "strict=False")
MARKED = """\
<<<<<<< sglang 1.0, with the hooks
        self.hits += 1
||||||| what the patch expects
        self.hits.add(1)
        log(key)
=======
        self.hits.add(1)
        log(key, size_of_it)
>>>>>>> what the patch makes of it
"""


@pytest.fixture
def mini(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> Miniature:
    """Return a project, as the folder that this process is in, whose newer release has another engine."""
    mini.lock_release("1.0", upstream("1.0"))
    mini.lock_release("1.1", upstream("1.1") | {ENGINE_FILE: NEWER.encode()})
    monkeypatch.chdir(mini.root)
    return mini


def fork_of(elsewhere: Path) -> Path:
    fork = checkout(elsewhere)
    commit(fork, "Upstream's newer one", {f"python/{ENGINE_FILE}": NEWER})
    return fork


def worktree(mini: Miniature) -> Path:
    return mini.root / ".nox" / "worktrees" / "1.0"


def subjects(mini: Miniature) -> list[str]:
    return git(worktree(mini), "log", "--reverse", "--format=%s", "overlay..").splitlines()


def at(mini: Miniature, subject: str, name: str = ENGINE_FILE) -> str:
    sha = git(worktree(mini), "log", "--format=%H", f"--grep=^{subject}$").strip()
    return git(worktree(mini), "show", f"{sha}:{name}")


def run(*words: str | Path) -> int:
    return cli.main([str(word) for word in words])


def test_a_conflict_stands_in_the_worktree_between_markers(
    mini: Miniature, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fork = fork_of(elsewhere)
    commit(fork, "Add a size\n\nWe need\nit.\n\nForwarded: https://example.org/1", {f"python/{ENGINE_FILE}": SIZED})
    commit(fork, "Four", {f"python/{FILE}": LAST})
    assert run("import", mailed(fork, 2), "--base", "1.0", "--yes") == 1
    said = capsys.readouterr()
    assert "0001-Add-a-size.patch: it applies exactly to sglang 1.1: --base 1.1" in said.out
    assert "0001-Add-a-size.patch: to be settled: sglang/engine.py:9" in said.err
    assert "nox -s export -- 1.0 --releases '==1.0'" in said.err
    assert (mini.root / "patches/series").read_text() == "choose\nfour <=1.0\n"
    assert subjects(mini) == ["Let the overlay choose", "Four", "Add a size"]
    message = git(worktree(mini), "log", "-1", "--format=%B")
    assert message.split("\n\n")[:2] == ["Add a size", "We need it."]
    for line in ("Hook: add-a-size", "Forwarded: https://example.org/1", "Remove-When: TO BE FILLED"):
        assert line in message.splitlines()
    text = at(mini, "Add a size")
    assert MARKED in text
    assert text.replace(MARKED, "        self.hits += 1\n") == ENGINE.replace("strict=True", "strict=False")


def test_export_takes_it_once_it_is_settled_and_not_before(
    mini: Miniature, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fork = fork_of(elsewhere)
    commit(fork, "Add a size", {f"python/{ENGINE_FILE}": SIZED})
    mails = mailed(fork, 1)
    assert run("import", mails, "--base", "1.0", "--yes") == 1
    before = mini.content()
    assert run("export", "1.0", "--releases", "==1.0", "--yes") == 1
    said = capsys.readouterr().err
    assert (
        "(Add a size) has conflict markers at sglang/engine.py:9, 11, 14, 17, to be settled for hook add-a-size" in said
    )
    assert "rebase -i overlay`, and amend there" in said
    assert mini.content() == before
    settled = at(mini, "Add a size").replace(MARKED, "        self.hits += size_of_it\n")
    write(worktree(mini), {ENGINE_FILE: settled})
    git(worktree(mini), "commit", "--quiet", "--all", "--amend", "--no-edit")
    assert run("export", "1.0", "--releases", "==1.0", "--yes") == 0
    assert in_wheel(mini, ENGINE_FILE) == settled
    assert in_wheel(mini, ENGINE_FILE, "1.1") == NEWER


def test_what_builds_on_a_conflict_stands_on_top_of_it(mini: Miniature, elsewhere: Path) -> None:
    fork, changed = fork_of(elsewhere), SIZED.replace("size_of_it", "its_size")
    commit(fork, "Add a size", {f"python/{ENGINE_FILE}": SIZED})
    commit(fork, "Rename it", {f"python/{ENGINE_FILE}": changed})
    commit(fork, "Use it", {f"python/{FILE}": LAST.replace("return 4", "return its_size")})
    commit(fork, "Close", {f"python/{ENGINE_FILE}": changed.replace("model.close()", "model.end()")})
    mails = mailed(fork, 4)
    plan = planned(mini, mails)
    assert [row.outcome for row in plan.rows] == ["conflict", "conflict", "conflict", "brought in"]
    assert run("import", mails, "--base", "1.0", "--yes") == 1
    assert subjects(mini) == ["Let the overlay choose", "Close", "Add a size", "Rename it", "Use it"]
    text = at(mini, "Rename it")
    assert text.count("<<<<<<<") == text.count("|||||||") == text.count(">>>>>>>") == 1
    assert (
        "        log(key, size_of_it)\n=======\n        self.hits.add(1)\n        log(key, its_size)\n>>>>>>>" in text
    )
    assert "<<<<<<< sglang 1.0, with the hooks\n        self.hits += 1\n|||||||" in text
    assert "return its_size" in at(mini, "Use it", FILE)
    assert "its_size" not in in_wheel(mini, FILE)


def test_a_patch_that_needs_what_conflicts_waits_for_it(mini: Miniature, elsewhere: Path) -> None:
    fork = fork_of(elsewhere)
    commit(fork, "Add a size", {f"python/{ENGINE_FILE}": SIZED})
    commit(fork, "Use it", {f"python/{FILE}": LAST.replace("return 4", "return size_of_it")})
    plan = planned(mini, mailed(fork, 2))
    assert [row.outcome for row in plan.rows] == ["conflict", "conflict"]
    assert "it may need 0001-Add-a-size.patch, which is in conflict" in notes(plan)


def test_a_conflict_with_a_hook_is_put_into_its_function(mini: Miniature, elsewhere: Path) -> None:
    source = difference(elsewhere, "named", loader=(LOADER, LOADER.replace("(config):\n", "(config, name=None):\n")))
    assert run("import", source, "--base", "1.0", "--yes") == 1
    assert subjects(mini) == ["Let the overlay choose", "named"]
    text = at(mini, "named", FILE)
    assert "<<<<<<< sglang 1.0, with the hooks\ndef get_model(config):\n    config = choose(config)\n" in text
    assert "=======\ndef get_model(config, name=None):\n" in text


def test_a_hunk_without_a_place_stands_at_its_line(mini: Miniature, elsewhere: Path) -> None:
    rows = "".join(f"row {n}\n" for n in range(9))
    source = difference(elsewhere, "rows", loader=(rows, rows.replace("row 8", "row eight")))
    hooked = in_wheel(mini, FILE).splitlines()
    assert run("import", source, "--base", "1.0", "--yes") == 1
    marked = ["row 5", "row 6", "row 7", "row 8", "=======", "row 5", "row 6", "row 7", "row eight"]
    assert at(mini, "rows", FILE).splitlines() == [
        *hooked[:5], "<<<<<<< sglang 1.0, with the hooks", "||||||| what the patch expects", *marked,
        ">>>>>>> what the patch makes of it", *hooked[5:],
    ]  # fmt: skip


def test_a_file_that_the_base_does_not_have_is_all_conflict(mini: Miniature, elsewhere: Path) -> None:
    source = difference(elsewhere, "absent", new=("a = 1\nb = 2\n", "a = 1\nb = 3\n"))
    assert run("import", source, "--base", "1.0", "--yes") == 1
    assert at(mini, "absent", "sglang/new.py").splitlines()[:2] == [
        "<<<<<<< sglang 1.0, with the hooks", "||||||| what the patch expects",
    ]  # fmt: skip


def test_two_new_files_of_one_name_are_a_conflict(mini: Miniature, elsewhere: Path) -> None:
    fork = checkout(elsewhere)
    commit(fork, "Ours", {"python/sglang/models/ours.py": "OURS = 2\n"})
    commit(fork, "Theirs", {"python/sglang/theirs.py": "A = 1\n"})
    mini.lock_release("1.0", upstream("1.0") | {"sglang/theirs.py": b"A = 2\n"})
    assert run("import", mailed(fork, 2), "--base", "1.0", "--yes") == 1
    for subject, name, ours in (("Ours", "models/ours.py", "OURS = 1"), ("Theirs", "theirs.py", "A = 2")):
        lines = at(mini, subject, f"sglang/{name}").splitlines()
        assert lines[0].startswith("<<<<<<< ")
        assert lines[1:3] == [ours, "======="]


def test_what_does_not_compile_is_left_to_a_person(mini: Miniature, elsewhere: Path) -> None:
    source = difference(elsewhere, "broken", loader=(LOADER, LOADER.replace("return 3", "return (3")))
    assert run("import", source, "--base", "1.0", "--yes") == 1
    assert "return (3\n" in at(mini, "broken", FILE)
    assert (mini.root / "patches/series").read_text() == "choose\n"


def test_lines_that_stand_twice_are_a_conflict_at_the_nearer_place(mini: Miniature, elsewhere: Path) -> None:
    twin = "    x = 1\n    x = 2\n    x = 3\n    x = 4\n    x = 5\n    x = 6\n    x = 7\n"
    text = f"{LOADER}\n\ndef a():\n{twin}\n\ndef b():\n{twin}"
    mini.lock_release("1.0", upstream("1.0") | {FILE: text.encode()})
    longer = "y = 1\n" * 3 + text
    head, _, tail = longer.rpartition("x = 4")
    source = difference(elsewhere, "twice", loader=(longer, f"{head}x = 44{tail}"))
    assert run("import", source, "--base", "1.0", "--yes") == 1
    marked = at(mini, "twice", FILE)
    assert marked.index("<<<<<<<") > marked.index("def b():")
    assert (
        "<<<<<<< sglang 1.0, with the hooks\n    x = 4\n||||||| what the patch expects\n    x = 4\n=======\n    x = 44"
        in marked
    )


@pytest.mark.parametrize("discard", [False, True])
def test_a_worktree_with_work_is_kept_unless_told(
    mini: Miniature, elsewhere: Path, discard: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(mini.project, mini.cache, "1.0", discard=False)
    write(worktree(mini), {ENGINE_FILE: FASTER})
    fork = fork_of(elsewhere)
    commit(fork, "Add a size", {f"python/{ENGINE_FILE}": SIZED})
    commit(fork, "Four", {f"python/{FILE}": LAST})
    before = mini.content()
    words: list[str | Path] = ["import", mailed(fork, 2), "--base", "1.0", "--yes", *(["--discard"] if discard else [])]
    assert run(*words) == 1
    said = capsys.readouterr().err
    if discard:
        assert subjects(mini)[-1] == "Add a size"
        return
    assert "engine.py is not committed" in said
    assert "`--discard` does not keep them" in said
    assert mini.content() == before
    assert (worktree(mini) / ENGINE_FILE).read_text() == FASTER
    git(worktree(mini), "checkout", "--quiet", ".")
    assert run(*words) == 1
    assert subjects(mini)[-1] == "Add a size"


def test_work_that_is_done_while_it_asks_is_kept(
    mini: Miniature, elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(mini.project, mini.cache, "1.0", discard=False)
    fork = fork_of(elsewhere)
    commit(fork, "Add a size", {f"python/{ENGINE_FILE}": SIZED})
    before = mini.content()

    def work(_: str) -> str:
        commit(worktree(mini), "Mine", {ENGINE_FILE: FASTER})
        return "y"

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", work)
    assert run("import", mailed(fork, 1), "--base", "1.0") == 1
    assert "has commits that are not exported" in capsys.readouterr().err
    assert subjects(mini)[-1] == "Mine"
    assert mini.content() == before


def test_new_files_of_a_conflict_are_as_the_patch_has_them(mini: Miniature, elsewhere: Path) -> None:
    fork = fork_of(elsewhere)
    run_sh = fork / "python/sglang/kt/run.sh"
    write(fork, {"python/sglang/kt/run.sh": "echo\n"})
    run_sh.chmod(0o755)
    commit(fork, "Add it", {
        f"python/{ENGINE_FILE}": SIZED, "python/sglang/kt/__init__.py": "", "python/sglang/kt/model.py": "M = 1\n"
    })  # fmt: skip
    assert run("import", mailed(fork, 1), "--base", "1.0", "--yes") == 1
    listed = git(worktree(mini), "ls-tree", "-r", "HEAD", "sglang/kt")
    assert [(line.split()[0], line.split("\t")[1]) for line in listed.splitlines()] == [
        ("100644", "sglang/kt/__init__.py"), ("100644", "sglang/kt/model.py"), ("100755", "sglang/kt/run.sh")
    ]  # fmt: skip


def test_a_worktree_is_made_by_the_settings_that_are_written(mini: Miniature, elsewhere: Path) -> None:
    assert run("import", difference(elsewhere, "new", new=(None, "NEW = 1\n")), "--base", "1.0", "--yes") == 0
    fork = fork_of(elsewhere)
    commit(fork, "New", {"python/sglang/new.py": "NEW = 1\n"})
    commit(fork, "Gone", {"python/sglang/new.py": None})
    commit(fork, "Add a size", {f"python/{ENGINE_FILE}": SIZED})
    assert run("import", mailed(fork, 2), "--base", "1.0", "--yes") == 1
    assert mini.project.files == ()  # the file's range goes with it
    assert subjects(mini) == ["Let the overlay choose", "Add a size"]


def test_a_text_with_a_line_of_seven_signs_is_exported(mini: Miniature) -> None:
    edit(mini.project, mini.cache, "1.0", discard=False)
    commit(worktree(mini), "Text", {"sglang/models/ours.rst": "Of ours\n=======\n"})
    assert run("export", "1.0") == 0
    assert load_series(mini.root / "patches")


def test_a_patch_that_empties_a_changed_file_is_not_there_already(mini: Miniature, elsewhere: Path) -> None:
    plan = planned(mini, difference(elsewhere, "emptied", loader=(LOADER, "")))  # `choose` has changed it
    assert [row.outcome for row in plan.rows] == ["conflict"]
    assert "is there already" not in notes(plan)
    assert [place for patch in plan.marked for place in patch.marked] == [f"{FILE}:1"]
