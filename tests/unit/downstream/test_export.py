from __future__ import annotations

import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from overlay_tools.downstream.committed_hooks import Ask
from overlay_tools.downstream.diff import make_diff
from overlay_tools.downstream.edit import edit, worktree_of, worktrees
from overlay_tools.downstream.export import export
from overlay_tools.downstream.transaction import write_files
from overlay_tools.downstream.worktree import OVERLAY, UPSTREAM
from overlay_tools.errors import BuildError, LockError, OverlayError, PatchError, WorktreeError
from overlay_tools.patches.lint import lint
from overlay_tools.patches.series import load_series
from overlay_tools.wheels.verify import verify_wheel
from packaging.specifiers import SpecifierSet

from unit.conftest import HEADER, LOADER, PATCH, Miniature, upstream_files

FILE, OURS, TEXT = "sglang/loader.py", "sglang/models/ours.py", "sglang/übersetzung.txt"
HOOKED = LOADER.replace("(config):\n", "(config):\n    config = choose(config)\n")
CHOSEN = HOOKED.replace("choose(config)", "choose(config, 2)")
COUNTED = HOOKED.replace("def last():\n", "def last():\n    count()\n")
MESSAGE = "Count calls\n\nnobody does\n\nForwarded: no: ours\nRemove-When: never\n"


def tree(mini: Miniature, version: str = "1.0") -> Path:
    return mini.root / ".nox" / "worktrees" / version


def git(mini: Miniature, *words: str, version: str = "1.0") -> str:
    done = subprocess.run(["git", *words], cwd=tree(mini, version), capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def mini(mini: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Miniature:
    """Return a project with a worktree of 1.0, and a person that git knows."""
    (tmp_path / "config").write_text("[user]\n\tname = me\n\temail = me@here\n[advice]\n\tdetachedHead = false\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    opened(mini)
    return mini


def opened(mini: Miniature, version: str = "1.0", *, discard: bool = False) -> None:
    assert edit(mini.project, mini.cache, version, discard=discard).folder == tree(mini, version)


def write(mini: Miniature, version: str = "1.0", **files: str | None) -> None:
    """Write files of the worktree: loader, ours, text or, by its path with _ for /, any other; None removes one."""
    for name, text in files.items():
        path = tree(mini, version) / {"loader": FILE, "ours": OURS, "text": TEXT}.get(
            name, f"sglang/{name.replace('_', '/')}.py"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink() if text is None else path.write_text(text, newline="")


def commit(mini: Miniature, message: str, version: str = "1.0", **files: str | None) -> str:
    write(mini, version, **files)
    git(mini, "add", "--all", version=version)
    return git(mini, "commit", "--quiet", "--allow-empty", f"--message={message}", version=version)


def move(mini: Miniature, to: str = "sglang/new.py", text: str | None = None) -> str:
    """Commit the loader under another name."""
    (tree(mini) / to).parent.mkdir(exist_ok=True)
    git(mini, "mv", FILE, to)
    if text is not None:
        (tree(mini) / to).write_text(text)
    return commit(mini, MESSAGE)


def commit_link(mini: Miniature, name: str) -> str:
    """Commit a path of the worktree as a link to a file beside it."""
    (tree(mini) / name).unlink(missing_ok=True)
    (tree(mini) / name).symlink_to("version.py")
    return commit(mini, MESSAGE)


def commit_executable(mini: Miniature, name: str) -> str:
    """Commit a path of the worktree as an executable file, which is new unless it is there."""
    (tree(mini) / name).touch()
    (tree(mini) / name).chmod(0o755)
    return commit(mini, MESSAGE)


def commit_submodule(mini: Miniature, name: str) -> str:
    """Commit a submodule that is not checked out."""
    (tree(mini) / name).mkdir()
    git(mini, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},{name}")
    return git(mini, "commit", "--quiet", f"--message={MESSAGE}")


def amend(mini: Miniature, message: str = "", **files: str | None) -> str:
    """Change the last commit: its files, or its message."""
    write(mini, "1.0", **files)
    told = f"--message={message}" if message else "--no-edit"
    return git(mini, "commit", "--quiet", "--all", "--amend", told)


def written(
    mini: Miniature, version: str = "1.0", ask: Ask | None = None, wanted: SpecifierSet | None = None
) -> list[str]:
    """Export, and expect a series without a fault that makes what the worktree has."""
    done = export(mini.project, mini.cache, version, wanted=wanted, ask=ask, agree=lambda hooks: True)
    hooks = load_series(mini.root / "patches")
    assert lint(hooks, list(mini.lock)) == []
    for each in mini.lock:
        mini.build(each)
    assert export(mini.project, mini.cache, version, agree=lambda hooks: True) == []
    return done


def refused(
    mini: Miniature, version: str = "1.0", ask: Ask | None = None, kind: type[OverlayError] = WorktreeError
) -> str:
    """Expect an error with a next step, and the checkout and the worktree as they were."""
    before, head = mini.content(), git(mini, "rev-parse", "HEAD")
    with pytest.raises(kind) as caught:
        export(mini.project, mini.cache, version, ask=ask, agree=lambda hooks: True)
    assert (mini.content(), git(mini, "rev-parse", "HEAD")) == (before, head)
    assert caught.value.hint
    return f"{caught.value}\n{caught.value.hint}"


def table(capsys: pytest.CaptureFixture[str]) -> dict[tuple[str, str], str]:
    """Return the table that was shown: by hook and releases, what became of the hook there."""
    rows = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    return {(hook, releases): outcome for hook, releases, outcome in rows}


def changed(mini: Miniature, call: Callable[[], object]) -> set[str]:
    """Return which files of the checkout something changes, adds or removes."""
    before = mini.content()
    call()
    after = mini.content()
    return {name for name in before | after if before.get(name) != after.get(name)}


def test_a_release_is_opened_as_a_repository(mini: Miniature) -> None:
    assert (tree(mini) / FILE).read_text() == HOOKED
    assert (tree(mini) / OURS).read_text() == "OURS = 1\n"
    assert git(mini, "log", "--format=%s") == "Let the overlay choose\nThe overlay's files\nUpstream's files"
    assert git(mini, "log", "-1", "--format=%b").split("\n") == [
        "because", "", "Hook: choose", "Forwarded: no: ours alone", "Remove-When: never"
    ]  # fmt: skip
    assert git(mini, "show", f"{UPSTREAM}:{FILE}") + "\n" == LOADER
    assert git(mini, "diff", "--name-only", UPSTREAM, OVERLAY) == OURS
    assert git(mini, "status", "--porcelain") == ""
    opened(mini, "1.1")
    assert worktrees(mini.project) == ["1.0", "1.1"]
    assert worktree_of(mini.project, "1.1").folder == tree(mini, "1.1")


def test_an_export_without_a_change_writes_nothing(mini: Miniature) -> None:
    mini.patch.write_bytes(
        PATCH.replace("Applies: >=1.0,", "Applies: >= 1.0 ,").replace("because", "because of\n that").encode()
    )
    mini.write("patches/series", "# ours\nchoose  # all\n")
    opened(mini)
    assert changed(mini, lambda: export(mini.project, mini.cache, "1.0", agree=lambda hooks: True)) == set()
    assert written(mini) == []


def test_a_hook_with_bytes_that_are_not_utf_8_is_refused_by_the_line_of_upstreams_file(mini: Miniature) -> None:
    (tree(mini) / TEXT).write_bytes("gut\nschön\n".encode("latin-1"))
    commit(mini, "Latin\n\nold readers\n\nForwarded: no: ours\nRemove-When: never\n")
    said = refused(mini, kind=PatchError)
    assert said.startswith(f"Hook latin: {TEXT}:2: byte 0xf6 is not UTF-8.\n")
    assert ".patch" not in said


def test_a_hook_that_is_changed_is_written(mini: Miniature) -> None:
    amend(mini, loader=CHOSEN)
    assert written(mini) == ["patches/choose/1.0.patch"]
    assert mini.patch.read_text() == HEADER + make_diff({FILE: LOADER.encode()}, {FILE: CHOSEN.encode()})


def test_a_release_that_the_change_does_not_fit_keeps_what_it_has(
    mini: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    # The old diff reaches no further than `return name`, the new one changes `last`.
    other = LOADER.replace("    return 3\n", "    return 4\n")
    mini.lock_release("1.1", upstream_files("1.1") | {FILE: other.encode()})
    mini.lock_release("1.2")
    mini.patch.write_text(PATCH.replace("<=1.1", "<=1.2"))
    opened(mini)
    amend(mini, loader=COUNTED)
    assert written(mini) == ["patches/choose/1.0.patch", "patches/choose/1.1.patch"]
    shown = table(capsys)
    assert shown["choose", "1.0, 1.2"] == "takes the change"
    assert shown["choose", "1.1"] == "keeps 1.0.patch: it does not fit"
    assert mini.patch.read_text() == HEADER.replace("<=1.1", "<=1.2,!=1.1") + make_diff(
        {FILE: LOADER.encode()}, {FILE: COUNTED.encode()}
    )
    assert (mini.root / "patches/choose/1.1.patch").read_text() == PATCH.replace(">=1.0,<=1.1", "==1.1")


def test_what_another_variant_serves_stays_with_it(mini: Miniature) -> None:
    mini.patch.write_text(PATCH.replace(">=1.0,<=1.1", "==1.0"))
    other = mini.write("patches/choose/1.1.patch", PATCH.replace(">=1.0,<=1.1", "==1.1").replace("because", "another"))
    before = other.read_bytes()
    opened(mini)
    amend(mini, loader=CHOSEN)
    assert written(mini) == ["patches/choose/1.0.patch"]
    assert other.read_bytes() == before


@pytest.mark.parametrize(
    "configuration",
    [
        "[diff]\n\tnoprefix = true\n\tmnemonicPrefix = true\n\talgorithm = histogram\n\tcontext = 1\n",
        "[core]\n\tabbrev = 40\n\tautocrlf = true\n[color]\n\tui = always\n[log]\n\tshowSignature = true\n",
        "[commit]\n\tcleanup = scissors\n[diff]\n\tinterHunkContext = 9\n[status]\n\tshort = true\n",
    ],
)
def test_the_same_change_gives_the_same_bytes_whatever_git_is_told(
    mini: Miniature, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, configuration: str
) -> None:
    start, results = mini.content(), []
    config = (tmp_path / "config").read_text()
    for told in ("", configuration):
        (tmp_path / "config").write_text(config + told)
        opened(mini, discard=True)
        amend(mini, loader=CHOSEN)
        commit(mini, MESSAGE, loader=CHOSEN.replace("return 3", "return 4"), ours="OURS = 2\r\n", text="schöner\n")
        written(mini)
        results.append(mini.content())
        write_files(mini.root, dict.fromkeys(results[-1]) | start)
    assert results[0] == results[1]
    assert results[0][f"overlay/{OURS}"] == b"OURS = 2\r\n"


def test_a_new_commit_becomes_a_new_hook(mini: Miniature) -> None:
    commit(mini, MESSAGE, loader=COUNTED)
    assert changed(mini, lambda: written(mini)) == {"patches/count-calls/1.0.patch", "patches/series"}
    assert (mini.root / "patches/series").read_text() == "choose\ncount-calls\n"
    text = (mini.root / "patches/count-calls/1.0.patch").read_text()
    assert text == (
        "Subject: Count calls\nWhy: nobody does\nApplies: >=1.0,<=1.1\nForwarded: no: ours\nRemove-When: never\n\n"
        + make_diff({FILE: HOOKED.encode()}, {FILE: COUNTED.encode()})
    )


def test_a_new_hook_is_due_where_it_fits(mini: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    other = LOADER.replace("    return 3\n", "    return 4\n")
    mini.lock_release("1.1", upstream_files("1.1") | {FILE: other.encode()})
    commit(mini, MESSAGE + "Hook: mine", loader=COUNTED)
    assert written(mini) == ["patches/mine/1.0.patch", "patches/series"]
    assert (mini.root / "patches/series").read_text() == "choose\nmine <=1.0\n"
    shown = table(capsys)
    assert shown["mine", "1.0"] == "becomes due"
    assert shown["mine", "1.1"] == "not due: it does not fit"


def test_a_new_hook_is_not_due_before_the_release_that_it_was_made_on(
    mini: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    opened(mini, "1.1")
    commit(mini, MESSAGE, "1.1", loader=COUNTED)
    assert written(mini, "1.1") == ["patches/count-calls/1.1.patch", "patches/series"]
    assert (mini.root / "patches/series").read_text() == "choose\ncount-calls >=1.1\n"
    assert table(capsys)["count-calls", "1.0"] == "not due: older than 1.1, on which it was made"


def test_a_new_hook_goes_to_the_releases_that_are_asked_for(
    mini: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    mini.lock_release("1.2")
    mini.patch.write_text(PATCH.replace("<=1.1", "<=1.2"))
    opened(mini, "1.1")
    commit(mini, MESSAGE, "1.1", loader=COUNTED)
    assert written(mini, "1.1", wanted=SpecifierSet("<1.2")) == ["patches/count-calls/1.0.patch", "patches/series"]
    assert (mini.root / "patches/series").read_text() == "choose\ncount-calls <=1.1\n"
    assert table(capsys)["count-calls", "1.2"] == "not due: outside --releases"


# `first` gives `last` a parameter; `second` passes it in another file, where nothing of `first` stands.
CALLER = "import sglang.loader as loader\n\n\ndef call():\n    return loader.last()\n"
FIRST = HOOKED.replace("def last():\n", "def last(switch=False):\n")
SECOND = CALLER.replace("last()", "last(switch=True)")


@pytest.fixture
def pair(mini: Miniature) -> Miniature:
    """Return a project whose releases have a caller, and 1.1 lines at `last` that `first` does not fit."""
    other = LOADER.replace("    return 3\n", "    return 4\n")
    for version, loader in (("1.0", LOADER), ("1.1", other)):
        mini.lock_release(
            version, upstream_files(version) | {FILE: loader.encode(), "sglang/caller.py": CALLER.encode()}
        )
    opened(mini)
    return mini


@pytest.mark.parametrize("caller", [SECOND, CALLER.replace("loader.last()", "loader.last(), 1")])
def test_a_hook_is_not_due_where_one_that_it_needs_is_not(
    pair: Miniature, capsys: pytest.CaptureFixture[str], caller: str
) -> None:
    commit(pair, MESSAGE.replace("Count calls", "First"), loader=FIRST)
    commit(pair, MESSAGE.replace("Count calls", "Second"), caller=caller)
    assert written(pair, wanted=SpecifierSet()) == [
        "patches/first/1.0.patch",
        "patches/second/1.0.patch",
        "patches/series",
    ]
    assert (pair.root / "patches/series").read_text() == "choose\nfirst <=1.0\nsecond <=1.0\n"
    assert table(capsys)["second", "1.1"] == "not due: it may need first, which is not there"


def test_what_an_exported_hook_brings_is_needed_too(pair: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    commit(pair, MESSAGE.replace("Count calls", "First"), loader=FIRST)
    written(pair)
    commit(pair, MESSAGE.replace("Count calls", "Second"), caller=SECOND)
    written(pair)
    assert table(capsys)["second", "1.1"] == "not due: it may need first, which is not there"


def test_hooks_of_one_file_go_together(pair: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    commit(pair, MESSAGE.replace("Count calls", "First"), loader=FIRST)
    commit(pair, MESSAGE.replace("Count calls", "Second"), loader=FIRST.replace("return 1", "return 2"))
    commit(pair, MESSAGE.replace("Count calls", "Third"), caller=CALLER + "\n\nDONE = 1\n")
    written(pair)
    assert (pair.root / "patches/series").read_text() == "choose\nfirst <=1.0\nsecond <=1.0\nthird\n"


def test_a_release_whose_contract_a_hook_breaks_does_not_take_it(
    pair: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    # Upstream's own `last` of 1.0 takes what the hook passes, that of 1.1 does not.
    files = upstream_files("1.0") | {FILE: LOADER.replace("last():", "last(switch=False):").encode()}
    pair.lock_release("1.0", files | {"sglang/caller.py": CALLER.encode()})
    pair.lock_release("1.2", upstream_files("1.2") | {"sglang/caller.py": CALLER.encode()} | {
        FILE: files[FILE]
    })  # fmt: skip
    pair.patch.write_text(PATCH.replace("<=1.1", "<=1.2"))
    opened(pair)
    commit(pair, MESSAGE, caller=SECOND)
    written(pair)
    assert (pair.root / "patches/series").read_text() == "choose\ncount-calls !=1.1\n"
    shown = table(capsys)
    assert shown["count-calls", "1.0, 1.2"] == "becomes due"
    assert "last()" in shown["count-calls", "1.1"]
    assert "'switch'" in shown["count-calls", "1.1"]


def test_a_hook_that_breaks_the_contract_of_its_own_release_is_refused(pair: Miniature) -> None:
    commit(pair, MESSAGE, caller=SECOND)
    said = refused(pair, kind=PatchError)
    assert "patches/count-calls/1.0.patch:" in said
    assert "'switch'" in said
    assert "ci/contract.toml" in said


def test_an_overlay_file_that_is_new_counts_for_the_contract(mini: Miniature) -> None:
    called = HOOKED.replace("def last():\n", "def last():\n    from sglang.models.mine import count\n\n    count()\n")
    commit(mini, MESSAGE, loader=called, models_mine="def count():\n    pass\n")
    assert len(written(mini)) == 3


def test_nothing_is_written_unless_a_wider_hook_is_agreed_to(
    mini: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(mini, MESSAGE, loader=COUNTED)
    asked: list[str] = []
    before = mini.content()

    def refuse(hooks: str) -> bool:
        asked.append(hooks)
        return False

    with pytest.raises(WorktreeError, match=r"Nothing was written") as caught:
        export(mini.project, mini.cache, "1.0", agree=refuse)
    assert mini.content() == before
    assert "--releases" in caught.value.hint
    assert asked == ["count-calls would become due where it was not"]
    assert table(capsys)["count-calls", "1.0 to 1.1"] == "becomes due"
    assert len(written(mini)) == 2


@pytest.mark.parametrize("name", ["patches/choose/1.0.patch", "patches/series", "patches/mine/1.0.patch"])
def test_what_changes_while_it_asks_is_not_overwritten(mini: Miniature, name: str) -> None:
    commit(mini, MESSAGE, loader=COUNTED)
    after: dict[str, bytes] = {}

    def change(_: str) -> bool:
        path = mini.root / name
        mini.write(name, (path.read_text() if path.exists() else "") + "# mine\n")
        after.update(mini.content())
        return True

    with pytest.raises(OverlayError, match=f"{name} has changed since it was read") as caught:
        export(mini.project, mini.cache, "1.0", agree=change)
    assert "Nothing was written" in caught.value.hint
    assert mini.content() == after


@pytest.mark.parametrize("committed", [True, False])
def test_what_is_done_in_the_worktree_while_it_asks_is_not_taken_for_exported(mini: Miniature, committed: bool) -> None:
    commit(mini, MESSAGE, loader=COUNTED)
    before = mini.content()

    def work_on(_: str) -> bool:
        if committed:
            commit(mini, "Ours", ours="OURS = 3\n")
        else:
            write(mini, ours="OURS = 3\n")
        return True

    with pytest.raises(WorktreeError, match="has changed since it was read") as caught:
        export(mini.project, mini.cache, "1.0", agree=work_on)
    assert "Nothing was written" in caught.value.hint
    assert mini.content() == before
    with pytest.raises(WorktreeError):
        opened(mini)  # it holds work
    assert (tree(mini) / OURS).read_text() == "OURS = 3\n"


def test_a_change_needs_no_agreement(mini: Miniature) -> None:
    amend(mini, loader=CHOSEN)
    assert export(mini.project, mini.cache, "1.0", agree=lambda hooks: False) == ["patches/choose/1.0.patch"]


def test_what_a_message_does_not_say_is_asked(mini: Miniature) -> None:
    asked = []

    def ask(hook: str, field: str) -> str:
        asked.append((hook, field))
        return {"Why": "to know", "Forwarded": "https://example.org/1", "Remove-When": "known"}[field]

    commit(mini, "Count calls\n\nRemove-When: never", loader=COUNTED)
    said = refused(mini)
    assert "would be the new hook count-calls, and its message has no Why, Forwarded" in said
    assert "have no" not in refused(mini, ask=lambda hook, field: "")
    assert written(mini, ask=ask) == ["patches/count-calls/1.0.patch", "patches/series"]
    assert asked == [("count-calls", "Why"), ("count-calls", "Forwarded")]
    text = (mini.root / "patches/count-calls/1.0.patch").read_text()
    assert "Why: to know\nApplies: >=1.0,<=1.1\nForwarded: https://example.org/1\nRemove-When: never\n" in text


def test_an_answer_that_no_header_may_have_is_refused(mini: Miniature) -> None:
    commit(mini, MESSAGE.replace("no: ours", "maybe"), loader=COUNTED)
    assert "(Count calls) says Forwarded: maybe; it must be upstream's address of it, or `no: `" in refused(mini)


@pytest.mark.parametrize("name", ["../../../outside", ".hidden", "a b", "series", "README.md", "-x", "größe"])
def test_a_name_that_no_hook_may_have_is_refused(mini: Miniature, name: str) -> None:
    commit(mini, f"{MESSAGE}Hook: {name}", loader=COUNTED)
    assert f"{name!r} is not a name for a hook; give its message a trailer `Hook: NAME`" in refused(mini)


def test_a_subject_that_gives_no_name_is_refused(mini: Miniature) -> None:
    commit(mini, MESSAGE.replace("Count calls", "修正"), loader=COUNTED)
    assert "'' is not a name for a hook" in refused(mini)


def test_a_message_that_is_amended_changes_the_header_alone(mini: Miniature) -> None:
    amend(mini, message="Let ours choose\n\nfor good reasons\n\nHook: choose\nForwarded: https://example.org/7")
    assert written(mini) == ["patches/choose/1.0.patch"]
    assert mini.patch.read_text() == PATCH.replace("the overlay", "ours").replace(
        "because", "for good reasons"
    ).replace("no: ours alone", "https://example.org/7")


def test_a_header_that_changes_goes_to_all_that_take_the_diff(mini: Miniature) -> None:
    # In 1.1 the lines stand in another function: it was put there by hand, and `relocate` would only propose it.
    moved = LOADER.replace("get_model", "pick_model").replace("def other", "def others")
    mini.lock_release("1.1", upstream_files("1.1") | {FILE: moved.encode()})
    diff = PATCH.replace(" def get_model(config):\n+    config = choose(config)\n", "+    config = choose(config)\n")
    mini.patch.write_text(diff.replace("@@ -3,5 +3,6 @@ def other():\n \n \n", "@@ -6,2 +6,3 @@\n"))
    opened(mini)
    amend(mini, message="Let ours choose\n\nbecause\n\nHook: choose\nForwarded: no: ours alone\nRemove-When: never")
    assert written(mini) == ["patches/choose/1.0.patch"]
    assert "Applies: >=1.0,<=1.1\n" in mini.patch.read_text()


def test_files_of_the_overlay_are_written_added_and_removed(mini: Miniature) -> None:
    mini.write("overlay/sglang/models/gone.py", "GONE = 1\n")
    mini.write("overlay/sglang/models/theirs.py", "THEIRS = 1\n")
    opened(mini)
    commit(mini, "Ours", ours="OURS = 2\n")
    commit(mini, "More", models_gone=None, layers_new="NEW = 1\n")
    mini.write("overlay/sglang/models/theirs.py", "THEIRS = 2\n")  # here alone
    commit(mini, "Both", both="BOTH = 1\n")
    mini.write("overlay/sglang/both.py", "BOTH = 1\n")
    assert written(mini) == ["overlay/sglang/layers/new.py", "overlay/sglang/models/gone.py", f"overlay/{OURS}"]
    assert (mini.root / "overlay" / OURS).read_text() == "OURS = 2\n"
    assert (mini.root / "overlay/sglang/layers/new.py").read_text() == "NEW = 1\n"
    assert not (mini.root / "overlay/sglang/models/gone.py").exists()
    assert (mini.root / "overlay/sglang/models/theirs.py").read_text() == "THEIRS = 2\n"


def hook(mini: Miniature, name: str = "count-calls") -> str:
    """Return the diff of a hook."""
    return (mini.root / f"patches/{name}/1.0.patch").read_text().partition("\n\n")[2]


def built(mini: Miniature) -> dict[str, tuple[bytes, str]]:
    """Return the files under sglang/ of the wheel of 1.0, with their modes; it is as its manifest says."""
    path = mini.build().path
    assert verify_wheel(path).differences == []
    with zipfile.ZipFile(path) as wheel:
        infos = [info for info in wheel.infolist() if info.filename.startswith("sglang/") and not info.is_dir()]
        return {info.filename: (wheel.read(info), f"{info.external_attr >> 16 & 0o777:o}") for info in infos}


def test_a_file_of_upstreams_can_be_deleted(mini: Miniature) -> None:
    (tree(mini) / "sglang/native.so").unlink()
    commit(mini, MESSAGE, text=None)
    assert written(mini) == ["patches/count-calls/1.0.patch", "patches/series"]
    assert "deleted file mode 100755\nindex " in hook(mini)
    assert (mini.root / "patches/series").read_text() == "choose\ncount-calls\n"  # 1.1 has the same files
    assert not {TEXT, "sglang/native.so"} & built(mini).keys()
    opened(mini)
    assert not (tree(mini) / TEXT).exists()
    assert written(mini) == []


def test_a_file_that_has_changed_is_not_deleted(mini: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    mini.lock_release("1.1", upstream_files("1.1") | {TEXT: b"more"})
    commit(mini, MESSAGE, text=None)
    written(mini)
    assert table(capsys)["count-calls", "1.1"] == "not due: it does not fit"
    assert (mini.root / "patches/series").read_text() == "choose\ncount-calls <=1.0\n"


def test_a_file_of_upstreams_can_be_renamed(mini: Miniature) -> None:
    move(mini, text=COUNTED)
    assert written(mini) == ["patches/count-calls/1.0.patch", "patches/series"]
    assert f"rename from {FILE}\nrename to sglang/new.py\n--- a/{FILE}\n+++ b/sglang/new.py\n" in hook(mini)
    assert built(mini)["sglang/new.py"] == (COUNTED.encode(), "644")
    assert FILE not in built(mini)
    opened(mini)
    assert written(mini) == []
    amend(mini, new=COUNTED.replace("count()", "count(2)"))  # a hook that renames can be changed
    assert written(mini) == ["patches/count-calls/1.0.patch"]
    commit(mini, f"More\n\n{MESSAGE}", new=COUNTED.replace("count()", "count(3)"))  # and one follow it
    assert written(mini) == ["patches/more/1.0.patch", "patches/series"]
    assert built(mini)["sglang/new.py"][0].decode() == COUNTED.replace("count()", "count(3)")


def test_a_rename_of_a_binary_file_keeps_its_mode(mini: Miniature) -> None:
    git(mini, "mv", "sglang/native.so", "sglang/other.so")
    commit(mini, MESSAGE)
    written(mini)
    assert built(mini)["sglang/other.so"] == (bytes(range(256)) * 40, "755")


def test_a_new_file_unlike_the_one_that_is_deleted_goes_to_the_overlay(mini: Miniature) -> None:
    commit(mini, MESSAGE, text=None, new="NEW = 1\n")
    assert written(mini) == ["overlay/sglang/new.py", "patches/count-calls/1.0.patch", "patches/series"]
    assert "rename" not in hook(mini)


def test_a_rename_that_becomes_a_deletion_and_a_new_file_is_not_lost(mini: Miniature) -> None:
    move(mini)
    written(mini)
    git(mini, "reset", "--quiet", "--mixed", "HEAD~")
    git(mini, "commit", "--quiet", "--all", f"--message={MESSAGE}")
    commit(mini, "Ours alone")
    assert written(mini) == ["overlay/sglang/new.py", "patches/count-calls/1.0.patch"]
    assert "deleted file" in hook(mini)


def test_the_mode_of_a_file_of_the_overlay_is_written_back(mini: Miniature) -> None:
    commit_executable(mini, OURS)
    commit_executable(mini, "sglang/run.sh")
    assert written(mini) == [f"overlay/{OURS}", "overlay/sglang/run.sh"]
    assert written(mini) == []
    assert [built(mini)[name][1] for name in (OURS, "sglang/run.sh", FILE)] == ["755", "755", "644"]
    opened(mini)
    assert os.access(tree(mini) / OURS, os.X_OK)
    (tree(mini) / OURS).chmod(0o644)
    commit(mini, MESSAGE)
    assert written(mini) == [f"overlay/{OURS}"]
    assert built(mini)[OURS][1] == "644"


def test_the_mode_of_a_file_of_upstreams_can_change(mini: Miniature) -> None:
    commit_executable(mini, FILE)
    written(mini)
    assert hook(mini) == f"diff --git a/{FILE} b/{FILE}\nold mode 100644\nnew mode 100755\n"
    assert built(mini)[FILE] == (HOOKED.encode(), "755")
    opened(mini)
    assert os.access(tree(mini) / FILE, os.X_OK)
    (tree(mini) / FILE).chmod(0o644)
    amend(mini, loader=COUNTED)
    assert written(mini) == ["patches/count-calls/1.0.patch"]
    assert "mode" not in hook(mini)
    assert built(mini)[FILE] == (COUNTED.encode(), "644")


def test_a_hook_that_uses_a_renamed_module_is_taken_only_with_it(
    mini: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    mini.lock_release("1.1", upstream_files("1.1") | {"sglang/new_loader.py": b"theirs = 1\n"})
    move(mini, "sglang/new_loader.py")
    (tree(mini) / "sglang/version.py").write_text("from sglang._version import __version__\nimport sglang.new_loader\n")
    commit(mini, MESSAGE.replace("Count calls", "Use it"))
    written(mini)
    shown = table(capsys)
    assert shown["count-calls", "1.1"] == "not due: it does not fit"
    assert shown["use-it", "1.1"] == "not due: it may need count-calls, which is not there"


def test_a_commit_may_change_a_hook_and_the_overlay(mini: Miniature) -> None:
    commit(mini, MESSAGE, loader=COUNTED, ours="OURS = 2\n", new="NEW = 1\n")
    new = ["overlay/sglang/new.py", "patches/count-calls/1.0.patch", "patches/series"]
    assert written(mini) == [f"overlay/{OURS}", *new]
    assert "new.py" not in (mini.root / "patches/count-calls/1.0.patch").read_text()
    assert (mini.root / "overlay/sglang/new.py").read_text() == "NEW = 1\n"


@pytest.mark.parametrize(
    ("change", "said", "kind"),
    [
        (lambda mini: commit(mini, "Nothing"), "(Nothing) changes no line of any file; drop it", WorktreeError),
        (lambda mini: commit_link(mini, FILE), f"makes {FILE}, which is upstream's, a symbolic link.", WorktreeError),
        (lambda mini: commit_link(mini, "sglang/a.py"), "sglang/a.py is a symbolic link; only ordinary", WorktreeError),
        (lambda mini: commit_link(mini, OURS), f"{OURS} is a symbolic link; only ordinary files", WorktreeError),
        (lambda mini: commit_submodule(mini, "sglang/a"), "sglang/a is a submodule; only ordinary", WorktreeError),
        (lambda mini: write(mini, loader=COUNTED), f"{FILE} is not committed", WorktreeError),
        (lambda mini: write(mini, new="x = 1\n"), "sglang/new.py is not committed", WorktreeError),
        (
            lambda mini: commit(mini, f"{MESSAGE}Hook: choose", loader=COUNTED),
            "(Count calls) is a second commit of hook choose: `git rebase -i` makes them one", WorktreeError,
        ),
        (
            lambda mini: commit(mini, "fixup! Let the overlay choose", loader=CHOSEN),
            "(fixup! Let the overlay choose) is not squashed", WorktreeError,
        ),
        (
            lambda mini: move(mini, "more/loader.py"),
            f"(Count calls) renames {FILE}, which is upstream's, to outside sglang/.", WorktreeError,
        ),
        (
            lambda mini: [move(mini), commit(mini, f"Again\n\n{MESSAGE}", loader="x = 1\n")],
            f"(Again) adds {FILE}, which a hook before it has taken away: change that hook.", WorktreeError,
        ),
        (
            lambda mini: git(mini, "reset", "--quiet", "--hard", OVERLAY),
            "hook choose no longer has a commit", WorktreeError,
        ),
        (
            lambda mini: git(mini, "reset", "--quiet", "--hard", UPSTREAM),
            "'overlay' is not among those of HEAD", WorktreeError,
        ),
        (
            lambda mini: [
                git(mini, "reset", "--quiet", "--hard", OVERLAY),
                commit(mini, MESSAGE, text="schöner\n"),
                git(mini, "cherry-pick", "ORIG_HEAD"),
            ],
            "its hooks are not in the series' order, new ones last: choose", WorktreeError,
        ),
        (lambda mini: commit(mini, MESSAGE, loader=HOOKED + "def (:\n"), f"{FILE}:13: ", BuildError),
        (lambda mini: commit(mini, "Ours", ours="def (:\n"), f"{OURS}:1: ", BuildError),
        (
            lambda mini: [(tree(mini) / "notes.py").write_text(""), commit(mini, "Out")],
            "notes.py would go into no wheel: it is not under sglang/.", WorktreeError,
        ),
        (
            lambda mini: commit(mini, MESSAGE.replace("Count calls", "Count " * 50), loader=COUNTED),
            "is not a name for a hook; give its message a trailer `Hook: NAME`", WorktreeError,
        ),
        *(
            (
                lambda mini, name=name: [(tree(mini) / name).write_text("x = 1\n"), commit(mini, "New")],
                f"{name} would go into no wheel: {why}", WorktreeError,
            )
            for name, why in {
                "sglang/.hidden.json": "hidden files", "sglang/my-model.py": "a module cannot be named 'my-model'",
                "sglang/loader.py.orig": "it was left by a merge", "sglang/a\\b.txt": "its name has a backslash",
                "sglang/gr\udcf6\udcdfe.txt": "its name has a backslash, a colon, or what cannot be printed",
            }.items()
        ),
        (
            lambda mini: [(tree(mini) / "sglang-1.0.dist-info/METADATA").write_text(""), commit(mini, MESSAGE)],
            "METADATA is outside sglang/", PatchError,
        ),
        (
            lambda mini: [commit(mini, "Ours", ours="OURS = 2\n"), mini.write(f"overlay/{OURS}", "OURS = 3\n")],
            f"{OURS} has changed since", WorktreeError,
        ),
        (
            lambda mini: [commit(mini, "Ours", ours=None), mini.write(f"overlay/{OURS}", "OURS = 3\n")],
            f"{OURS} has changed since", WorktreeError,
        ),
        (
            lambda mini: [commit(mini, "New", new="x = 1\n"), mini.write("overlay/sglang/new.py", "x = 2\n")],
            "new.py has changed since", WorktreeError,
        ),
        (
            lambda mini: [amend(mini, loader=CHOSEN), mini.patch.write_text(PATCH.replace("because", "why"))],
            "patches/ has changed since", WorktreeError,
        ),
        (lambda mini: mini.patch.write_text(PATCH.replace("Why:", "Reason:")), "1.0.patch:2: unknown", PatchError),
        (lambda mini: mini.patch.write_text(PATCH.replace("<=1.1", "<=1.0")), "no variant for sglang 1.1", PatchError),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_over_is_refused(
    mini: Miniature, change: Callable[[Miniature], object], said: str, kind: type[OverlayError]
) -> None:
    change(mini)
    assert said in refused(mini, kind=kind)


def test_nothing_is_exported_while_a_rebase_is_under_way(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(mini, "New", new="NEW = 1\n")
    written(mini)
    monkeypatch.setenv("GIT_SEQUENCE_EDITOR", "sed -i 1s/pick/edit/")
    git(mini, "rebase", "--quiet", "--interactive", OVERLAY)
    assert "a git rebase is under way" in refused(mini)
    assert (mini.root / "overlay/sglang/new.py").exists()
    git(mini, "rebase", "--continue")
    assert written(mini) == []


def test_a_merge_is_refused(mini: Miniature) -> None:
    git(mini, "checkout", "--quiet", "-b", "side", OVERLAY)
    commit(mini, "Ours", ours="OURS = 2\n")
    git(mini, "checkout", "--quiet", "main")
    git(mini, "merge", "--quiet", "--no-edit", "side")
    assert "is a merge; rebase instead" in refused(mini)
    git(mini, "reset", "--quiet", "--hard", "HEAD~")
    git(mini, "rebase", "--quiet", "side")
    assert written(mini) == [f"overlay/{OURS}"]


def test_every_fault_is_said_at_once(mini: Miniature) -> None:
    git(mini, "reset", "--quiet", "--hard", OVERLAY)
    commit(mini, "Nothing")
    commit(mini, "fixup! Lost", loader=COUNTED)
    said = refused(mini)
    assert "changes no line" in said
    assert "is not squashed" in said
    assert "hook choose no longer has a commit" in said


def test_a_squashed_fixup_is_the_hooks(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(mini, "fixup! Let the overlay choose", loader=CHOSEN)
    monkeypatch.setenv("GIT_SEQUENCE_EDITOR", "true")
    git(mini, "rebase", "--quiet", "--interactive", "--autosquash", OVERLAY)
    assert written(mini) == ["patches/choose/1.0.patch"]


def test_a_hook_on_the_lines_of_another_follows_its_change(mini: Miniature) -> None:
    after = HOOKED.replace("choose(config)\n", "choose(config)\n    log(config)\n")
    mini.add_hook("after", {FILE: HOOKED}, {FILE: after})
    opened(mini)
    git(mini, "reset", "--quiet", "--hard", "HEAD~")
    amend(mini, loader=CHOSEN)
    commit(mini, "What after does\n\nHook: after", loader=CHOSEN.replace("2)\n", "2)\n    log(config)\n"))
    assert written(mini) == ["patches/after/1.0.patch", "patches/choose/1.0.patch"]
    text = (mini.root / "patches/after/1.0.patch").read_text()
    assert "Why: because\nApplies: >=1.0,<=1.1\n" in text


def test_a_hook_of_other_releases_alone_is_part_of_them(mini: Miniature) -> None:
    # In 1.1, `choose` has a variant that stands on the lines of `early`, which is not due in 1.0.
    early = LOADER.replace("(config):\n", "(config):\n    early()\n")
    diff = make_diff(
        {FILE: early.encode()}, {FILE: early.replace("early()\n", "early()\n    config = choose(config)\n").encode()}
    )
    mini.patch.write_text(PATCH.replace(">=1.0,<=1.1", "==1.0"))
    mini.write("patches/choose/1.1.patch", HEADER.replace(">=1.0,<=1.1", "==1.1") + diff)
    mini.write("patches/early/1.1.patch", HEADER.replace(">=1.0,<=1.1", "==1.1") + make_diff(
        {FILE: LOADER.encode()}, {FILE: early.encode()}
    ))  # fmt: skip
    mini.write("patches/series", "early >=1.1\nchoose\n")
    assert lint(load_series(mini.root / "patches"), ["1.0", "1.1"]) == []
    opened(mini)
    assert written(mini) == []
    amend(mini, loader=CHOSEN)
    assert written(mini) == ["patches/choose/1.0.patch"]


def test_a_hook_can_be_given_to_a_release_that_it_was_not_due_for(mini: Miniature) -> None:
    mini.patch.write_text(PATCH.replace(">=1.0,<=1.1", "==1.0"))
    mini.write("patches/series", "choose <1.1\n")
    opened(mini, "1.1")
    assert git(mini, "log", "-1", "--format=%s", version="1.1") == "The overlay's files"
    commit(mini, "Let the overlay choose\n\nHook: choose", "1.1", loader=CHOSEN)
    assert written(mini, "1.1") == ["patches/choose/1.1.patch", "patches/series"]
    assert (mini.root / "patches/series").read_text() == "choose\n"
    assert mini.patch.read_text() == PATCH.replace(">=1.0,<=1.1", "==1.0")
    assert "Why: because\nApplies: ==1.1\n" in (mini.root / "patches/choose/1.1.patch").read_text()


def test_a_change_that_breaks_a_hook_elsewhere_writes_nothing(mini: Miniature) -> None:
    # `after` stands on a line of `choose` in 1.1 alone, and `choose` is changed for both.
    after = HOOKED.replace("choose(config)\n", "choose(config)\n    log(config)\n")
    mini.patch.write_text(PATCH)
    path = mini.add_hook("after", {FILE: HOOKED}, {FILE: after}, "==1.1")
    path.rename(path.with_name("1.1.patch"))
    mini.write("patches/series", "choose\nafter >=1.1\n")
    opened(mini)
    amend(mini, loader=CHOSEN)
    said = refused(mini, kind=PatchError)
    assert "after/1.1.patch" in said
    assert "of sglang 1.1" in said


def test_it_is_exported_again_and_again(mini: Miniature) -> None:
    commit(mini, "Ours", ours="OURS = 2\n")
    assert written(mini) == [f"overlay/{OURS}"]
    commit(mini, "Ours again", ours="OURS = 3\n")
    commit(mini, MESSAGE, loader=COUNTED)
    assert set(written(mini)) == {f"overlay/{OURS}", "patches/count-calls/1.0.patch", "patches/series"}
    amend(mini, loader=COUNTED.replace("count()", "count(1)"))
    assert written(mini) == ["patches/count-calls/1.0.patch"]
    commit(mini, "Ours as it was", ours="OURS = 1\n")
    assert written(mini) == [f"overlay/{OURS}"]
    assert (mini.root / "overlay" / OURS).read_text() == "OURS = 1\n"


def test_a_release_locked_in_the_meantime_does_not_matter(mini: Miniature) -> None:
    amend(mini, loader=CHOSEN)
    mini.lock_release("1.2")
    mini.patch.write_text(PATCH.replace("<=1.1", "<=1.2"))  # as `port` does
    assert written(mini) == ["patches/choose/1.0.patch"]
    assert "Applies: >=1.0,<=1.2\n" in mini.patch.read_text()


def test_a_worktree_with_work_is_not_replaced(mini: Miniature) -> None:
    opened(mini)  # there is none yet
    write(mini, loader=COUNTED)
    with pytest.raises(WorktreeError, match=f"{FILE} is not committed") as caught:
        opened(mini)
    assert "nox -s export -- 1.0" in caught.value.hint
    assert "--discard" in caught.value.hint
    commit(mini, MESSAGE)
    with pytest.raises(WorktreeError, match="has commits that are not exported"):
        opened(mini)
    assert (tree(mini) / FILE).read_text() == COUNTED
    written(mini)
    opened(mini)
    assert git(mini, "log", "-2", "--format=%s") == "Count calls\nLet the overlay choose"
    commit(mini, "Ours", ours="OURS = 2\n")
    opened(mini, discard=True)
    assert (tree(mini) / OURS).read_text() == "OURS = 1\n"
    (tree(mini) / ".git" / "sglang-overlay.json").write_text("damaged")
    with pytest.raises(WorktreeError, match="not exported"):
        opened(mini)
    assert "patches/ has changed since" in refused(mini)


def test_a_worktree_with_something_kept_aside_is_not_replaced(mini: Miniature) -> None:
    write(mini, loader=COUNTED)
    git(mini, "stash", "push", "--quiet", "--message=later")
    git(mini, "checkout", "--quiet", "-b", "try/out")
    commit(mini, MESSAGE, loader=COUNTED)
    git(mini, "tag", "good")
    commit(mini, "Ours", ours="OURS = 2\n")
    git(mini, "checkout", "--quiet", "main")
    git(mini, "branch", "same")  # has nothing that main has not
    with (tree(mini) / ".git/info/exclude").open("a") as exclude:
        exclude.write("try.py\n")
    (tree(mini) / "try.py").write_text("import sglang\n")
    (tree(mini) / "__pycache__").mkdir()
    (tree(mini) / "__pycache__/try.pyc").write_bytes(b"")
    with pytest.raises(WorktreeError) as caught:
        opened(mini)
    assert [line.removeprefix(f"{tree(mini)}: ") for line in caught.value.problems] == [
        "stash stash@{0} (On main: later) is not exported.",
        "branch try/out is not exported.",
        "tag good is not exported.",
        "file try.py is not exported.",
    ]
    assert (tree(mini) / "try.py").exists()
    (tree(mini) / "try.py").unlink()
    assert git(mini, "stash", "list")
    git(mini, "stash", "drop", "--quiet")
    git(mini, "merge", "--quiet", "--ff-only", "try/out")
    written(mini)
    opened(mini)  # what was kept aside is exported with the rest
    assert git(mini, "branch", "--list") == "* main"


def test_a_worktree_with_a_hook_that_patches_no_longer_has_is_not_replaced(mini: Miniature) -> None:
    series = mini.root / "patches" / "series"
    before = series.read_text()
    commit(mini, MESSAGE, loader=COUNTED)
    written(mini)
    shutil.rmtree(mini.root / "patches" / "count-calls")
    series.write_text(before)
    with pytest.raises(WorktreeError, match="hook count-calls is in its commits, and no longer in patches/") as caught:
        opened(mini)
    assert "--discard" in caught.value.hint
    assert (tree(mini) / FILE).read_text() == COUNTED
    opened(mini, discard=True)
    assert (tree(mini) / FILE).read_text() == HOOKED


def test_a_worktree_that_cannot_be_made_leaves_the_one_that_is_there(
    mini: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(mini, "Ours", ours="OURS = 2\n")
    mini.write("patches/choose/1.0.patch", PATCH.replace("config.name", "config.title"))
    with pytest.raises(PatchError, match=r"are not in sglang/loader\.py"):
        opened(mini, discard=True)
    assert (tree(mini) / OURS).read_text() == "OURS = 2\n"
    mini.patch.write_text(PATCH)
    opened(mini, discard=True)  # what was left half made does not matter
    assert (tree(mini) / OURS).read_text() == "OURS = 1\n"
    assert worktrees(mini.project) == ["1.0"]


def test_a_release_that_is_not_locked_or_not_open_is_refused(mini: Miniature) -> None:
    with pytest.raises(LockError, match=r"holds no release '7\.7'"):
        opened(mini, "7.7")
    with pytest.raises(WorktreeError, match=r"There is no .*1\.1") as caught:
        export(mini.project, mini.cache, "1.1", agree=lambda hooks: True)
    assert "nox -s edit -- 1.1" in caught.value.hint
    assert worktrees(mini.project) == ["1.0"]


def test_a_replaced_file_of_upstreams_is_the_overlays(mini: Miniature) -> None:
    project = (mini.root / "pyproject.toml").read_text()
    mini.write("pyproject.toml", project.replace("replaces = []", f'replaces = ["{TEXT}"]'))
    mini.write(f"overlay/{TEXT}", "unser\n")
    opened(mini)
    assert (tree(mini) / TEXT).read_text() == "unser\n"
    commit(mini, "Ours", text="unser eins\n")
    assert written(mini) == [f"overlay/{TEXT}"]


def test_a_write_that_fails_leaves_hooks_and_overlay_as_they_were(
    mini: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(mini, MESSAGE, loader=COUNTED, ours="OURS = 2\n")
    before, replace = mini.content(), Path.replace

    def fail(path: Path, target: Path) -> Path:
        if target.name == "series":
            raise OSError(28, "No space left on device")
        return replace(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            export(mini.project, mini.cache, "1.0", agree=lambda hooks: True)
    assert mini.content() == before
    assert len(written(mini)) == 3
