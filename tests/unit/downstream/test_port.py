from __future__ import annotations

import os
import re
import shutil
import signal
import textwrap
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from overlay_tools.api_check.base_mentions import BaseMention
from overlay_tools.downstream.diff import make_diff
from overlay_tools.downstream.follow import HunkReport
from overlay_tools.downstream.port import Port
from overlay_tools.downstream.selection import Wanted
from overlay_tools.downstream.worktree import OVERLAY
from overlay_tools.errors import BuildError, FetchError, LockError, OverlayError, PatchError, PortError, ToolError
from overlay_tools.patches.lint import lint
from overlay_tools.patches.series import load_series
from overlay_tools.upstream.lockfile import LockedWheel, Release

from unit.api_check.derived import ROW, ROW_FILE, UPSTREAM, derive
from unit.conftest import ENGINE, HEADER, LOADER, PATCH, Miniature, upstream_files
from unit.downstream.porting import git, stopped, worktree

FILE, ENGINE_FILE = "sglang/loader.py", "sglang/engine.py"
CHANGED = LOADER.replace("    name = config.name\n", "    name = config.title\n")  # in the context of the hook
SETTLED = CHANGED.replace("(config):\n", "(config):\n    config = choose(config, 2)\n")
VARIANT = HEADER.replace(">=1.0,<=1.1", "==1.2") + make_diff({FILE: CHANGED.encode()}, {FILE: SETTLED.encode()})


def port_to(mini: Miniature, version: str, files: Mapping[str, str | None]) -> list[HunkReport]:
    """Begin with a release that has these files, None for one that it has not, and those of every one."""
    content = upstream_files(version) | {name: (text or "").encode() for name, text in files.items()}
    gone = {name for name, text in files.items() if text is None}
    release = mini.publish(version, {name: data for name, data in content.items() if name not in gone})
    return Port(mini.project, mini.cache).start(version, lambda asked: release)


def start(mini: Miniature, version: str = "1.2", loader: str = LOADER) -> list[HunkReport]:
    return port_to(mini, version, {FILE: loader})


def resume(mini: Miniature, *drop: str) -> list[HunkReport]:
    return Port(mini.project, mini.cache).resume(Wanted(drop=drop))


def outcomes(rows: Sequence[HunkReport]) -> list[tuple[str, str]]:
    return [(hook, outcome) for hook, _, outcome, _ in rows]


def settle(mini: Miniature, text: str = SETTLED, file: str = FILE) -> None:
    (worktree(mini) / file).write_text(text)


def accept(mini: Miniature, *files: str) -> None:
    """Settle every conflict of files of the worktree by taking the hook's lines."""
    for name in files:
        text = (worktree(mini) / name).read_text()
        conflict = r"(?ms)^<{7} [^\n]*\n.*?^={7}\n(.*?)^>{7} [^\n]*\n"
        settle(mini, re.sub(conflict, r"\1", text), name)


def commits(mini: Miniature) -> list[str]:
    return re.findall(r"(?m)^    Hook: (.*)$", git(mini, "log", "--reverse", f"{OVERLAY}..HEAD"))


def holds(mini: Miniature, version: str = "1.2") -> None:
    """Expect a release to be locked, its hooks to be without a fault, its wheel to build, and no port to go on."""
    assert version in mini.lock
    assert lint(load_series(mini.root / "patches"), list(mini.lock)) == []
    mini.build(version)
    assert not (mini.root / ".nox" / "porting").exists()
    with pytest.raises(PortError, match="There is no port in progress"):
        resume(mini)


def test_a_release_whose_hooks_all_hold_is_locked(mini: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    before = mini.content()
    rows = start(mini, loader="# new\n" + LOADER)
    assert rows == [("choose", f"{FILE}:4", "offset 1", "get_model unchanged")]
    said = capsys.readouterr().out
    assert re.search(r"hook +place +outcome +what was found\n +choose +sglang/loader.py:4 +offset 1 +get_model", said)
    assert "sglang 1.2 is locked.\n  patches/choose/1.0.patch\n  upstream.lock\nNext: nox -s test-1.2" in said
    after = mini.content()
    assert {name for name in after if after[name] != before.get(name)} == {"patches/choose/1.0.patch", "upstream.lock"}
    assert mini.patch.read_text() == PATCH.replace("<=1.1", "<=1.2")
    assert list(mini.lock) == ["1.0", "1.1", "1.2"]
    holds(mini)


def test_files_that_stay_behind_are_named(mini: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    mini.write("overlay/sglang/models/mine.py", "A = 1\n")
    mini.limit({"sglang/models/mine.py": "<=1.1"})
    start(mini, loader=LOADER)
    assert "overlay/sglang/models/mine.py is for sglang <=1.1 alone, as pyproject.toml:" in capsys.readouterr().out
    start(mini, version="1.3", loader=LOADER)
    assert "alone" not in capsys.readouterr().out  # it has stayed behind before


def test_a_variant_that_does_not_apply_to_its_own_release_is_named(mini: Miniature) -> None:
    mini.write("patches/choose/1.0.patch", PATCH.replace("     name = config", "     names = config"))
    with pytest.raises(PatchError, match=r"1\.0\.patch:\d+: sglang/loader\.py of sglang 1\.1, for which"):
        start(mini)
    assert not (mini.root / ".nox/port").exists()


def test_what_an_editor_has_in_patches_stays_there(mini: Miniature) -> None:
    swap, link = mini.write("patches/choose/.1.0.patch.swp", "open"), mini.root / "patches/choose/.#1.0.patch"
    link.symlink_to("me@host.1:1")
    start(mini)
    assert swap.read_text() == "open"
    assert link.is_symlink()
    holds(mini)


def test_an_older_release_gives_the_variant_its_name(mini: Miniature) -> None:
    assert outcomes(start(mini, "0.9")) == [("choose", "exact")]
    assert {name for name in mini.content() if "choose" in name} == {"patches/choose/0.9.patch"}
    assert (mini.root / "patches/choose/0.9.patch").read_text() == PATCH.replace(">=1.0", ">=0.9")
    assert list(mini.lock) == ["0.9", "1.0", "1.1"]
    holds(mini, "0.9")


def test_a_release_between_two_changes_only_the_lock(mini: Miniature) -> None:
    before = mini.content()
    start(mini, "1.0.post1")
    after = mini.content()
    assert {name for name in after if after[name] != before.get(name)} == {"upstream.lock"}
    holds(mini, "1.0.post1")


def test_a_hook_that_is_not_due_is_not_asked_for(mini: Miniature) -> None:
    mini.write("patches/series", "choose <1.2\n")
    assert start(mini, loader="") == [
        ("choose", "", "not due", "does not fit: target gone"),
    ]
    assert mini.patch.read_text() == PATCH
    holds(mini)


def test_a_hook_that_a_person_must_settle_opens_a_worktree(mini: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    mini.write("patches/series", "")
    mini.add_hook("first", {FILE: LOADER}, {FILE: LOADER.replace("return 3", "return 4")})
    mini.write("patches/series", "first\nchoose\n")
    said = stopped(mini, lambda: start(mini, loader=CHANGED))
    assert "patches/choose/1.0.patch:10: conflict: lines around it changed" in said
    assert str(worktree(mini)) in said
    assert "--continue" in said
    assert "--abort" in said
    assert re.search(
        r"first +sglang/loader.py:\d+ +exact .*\n +choose +sglang/loader.py:6 +conflict", capsys.readouterr().out
    )
    assert commits(mini) == ["first", "choose"]
    assert (worktree(mini) / FILE).read_text() == CHANGED.replace("return 3", "return 4").replace(
        "(config):\n",
        "(config):\n<<<<<<< sglang 1.2\n=======\n    config = choose(config)\n>>>>>>> choose\n",
    )
    assert (worktree(mini) / "sglang/models/ours.py").read_text() == "OURS = 1\n"
    settle(mini, SETTLED.replace("return 3", "return 4"))
    assert outcomes(resume(mini)) == [("first", "exact"), ("choose", "settled")]
    holds(mini)


def test_what_is_settled_becomes_the_variant_of_the_release(mini: Miniature) -> None:
    before = mini.content()
    stopped(mini, lambda: start(mini, loader=CHANGED))
    settle(mini)
    assert resume(mini) == [("choose", FILE, "settled", "+1/-0 in the worktree")]
    after = mini.content()
    assert {name for name in after if after[name] != before.get(name)} == {"patches/choose/1.2.patch", "upstream.lock"}
    assert after["patches/choose/1.2.patch"].decode() == VARIANT
    holds(mini)


def test_a_proposal_is_taken_over_by_taking_the_markers_away(mini: Miniature) -> None:
    stopped(mini, lambda: start(mini, loader=CHANGED))
    accept(mini, FILE)
    assert outcomes(resume(mini)) == [("choose", "settled")]
    holds(mini)
    with zipfile.ZipFile(mini.build("1.2").path) as wheel:
        assert wheel.read(FILE).decode() == SETTLED.replace(", 2)", ")")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: None, "(?s):6: a conflict marker of hook choose is left.*:7: a conflict.*:9: a conflict"),
        (lambda tree: (tree / FILE).write_text(CHANGED), "Hook choose: nothing in .* is changed by it"),
        (lambda tree: (tree / FILE).write_text(SETTLED + "def broken(:\n"), "worktree/sglang/loader.py:13: invalid"),
        (
            lambda tree: [(tree / FILE).write_text(SETTLED), (tree / "sglang/mine.py").write_text("x = 1\n")],
            "sglang/mine.py is not one of upstream's files",
        ),
        (
            lambda tree: [(tree / FILE).write_text(SETTLED), (tree / "sglang/models/ours.py").write_text("OURS = 2\n")],
            "sglang/models/ours.py is not one of upstream's files",
        ),
        (
            lambda tree: [(tree / FILE).write_text(SETTLED), (tree / "sglang/native.so").write_bytes(b"\0" * 999)],
            "git cannot read the diff|a binary diff|is not UTF-8",
        ),
    ],
)  # fmt: skip
def test_what_is_not_settled_is_refused_and_stays(mini: Miniature, change: Callable[[Path], object], said: str) -> None:
    stopped(mini, lambda: start(mini, loader=CHANGED))
    change(worktree(mini))
    state = git(mini, "status", "--porcelain")
    assert re.search(said, stopped(mini, lambda: resume(mini), OverlayError))
    assert (git(mini, "status", "--porcelain"), commits(mini)) == (state, ["choose"])
    for path in ("sglang/mine.py", "sglang/models/ours.py", "sglang/native.so"):
        (worktree(mini) / path).unlink(missing_ok=True)
    git(mini, "checkout", "--quiet", ".")
    settle(mini)
    resume(mini)
    holds(mini)


def test_all_open_hooks_are_settled_in_one_round(mini: Miniature) -> None:
    hooked = LOADER.replace("(config):\n", "(config):\n    config = choose(config)\n")
    mini.add_hook("last", {FILE: hooked}, {FILE: hooked.replace("def last():\n", "def last():\n    count()\n")})
    mini.add_hook("other", {FILE: hooked}, {FILE: hooked.replace("def other():\n", "def other():\n    count()\n")})
    loader = CHANGED.replace("    return 3\n", "    return 4\n")
    said = stopped(mini, lambda: start(mini, loader=loader))
    assert "choose/1.0.patch" in said
    assert "last/1.0.patch" in said
    assert commits(mini) == ["choose", "last", "other"]
    said = stopped(mini, lambda: resume(mini))
    assert said.count("a conflict marker of hook choose") == said.count("a conflict marker of hook last") == 3
    settled = SETTLED.replace("    return 3\n", "    count()\n    return 4\n")
    settle(mini, settled.replace("def other():\n", "def other():\n    count()\n"))
    assert outcomes(resume(mini)) == [("choose", "settled"), ("last", "settled"), ("other", "exact")]
    assert "Applies: ==1.2\n" in (mini.root / "patches/last/1.2.patch").read_text()
    assert "Applies: >=1.0,<=1.2\n" in (mini.root / "patches/other/1.0.patch").read_text()
    holds(mini)


def test_a_hook_on_lines_of_another_hook_follows_it(mini: Miniature) -> None:
    hooked = LOADER.replace("(config):\n", "(config):\n    config = choose(config)\n")
    mini.add_hook(
        "after", {FILE: hooked}, {FILE: hooked.replace("choose(config)\n", "choose(config)\n    log(config)\n")}
    )
    assert outcomes(start(mini, loader="# new\n" + LOADER)) == [("choose", "offset 1"), ("after", "offset 1")]
    holds(mini)
    stopped(mini, lambda: start(mini, "1.3", loader=CHANGED))
    settle(mini, SETTLED.replace("config, 2)\n", "config, 2)\n    log(config)\n"))
    assert outcomes(resume(mini)) == [("choose", "settled"), ("after", "settled")]
    holds(mini, "1.3")


def test_a_hook_that_is_dropped_is_due_no_more(mini: Miniature) -> None:
    hooked = LOADER.replace("(config):\n", "(config):\n    config = choose(config)\n")
    mini.add_hook(
        "after", {FILE: hooked}, {FILE: hooked.replace("choose(config)\n", "choose(config)\n    log(config)\n")}
    )
    mini.write("patches/series", "choose  # ours\nafter\n")
    stopped(mini, lambda: start(mini, loader=CHANGED))
    assert "of hook after" in stopped(mini, lambda: resume(mini, "choose"))  # it stands on its lines
    settle(mini, CHANGED.replace("(config):\n", "(config):\n    log(config)\n"))
    assert outcomes(resume(mini)) == [("choose", "dropped"), ("after", "settled")]
    assert (mini.root / "patches/series").read_text() == "choose <=1.1  # ours\nafter\n"
    assert mini.patch.read_text() == PATCH
    holds(mini)
    assert start(mini, "1.3", loader=CHANGED) != []
    assert [hook.name for hook in load_series(mini.root / "patches") if hook.variant("1.3")] == ["after"]


def test_a_release_between_two_can_have_a_variant_of_its_own_or_none(mini: Miniature) -> None:
    stopped(mini, lambda: start(mini, "1.0.post1", loader=CHANGED))
    settle(mini)
    resume(mini)
    assert mini.patch.read_text() == PATCH.replace("<=1.1", "<=1.1,!=1.0.post1")
    assert (mini.root / "patches/choose/1.0.post1.patch").read_text() == VARIANT.replace("==1.2", "==1.0.post1")
    holds(mini, "1.0.post1")
    stopped(mini, lambda: start(mini, "1.0.post2", loader="# new\n" + LOADER.replace("config.name", "config")))
    resume(mini, "choose")
    assert (mini.root / "patches/series").read_text() == "choose !=1.0.post2\n"
    assert "Applies: >=1.0,<=1.1,!=1.0.post1,!=1.0.post2\n" in mini.patch.read_text()
    holds(mini, "1.0.post2")


def test_to_drop_another_hook_costs_no_work(mini: Miniature) -> None:
    mini.add_hook("last", {FILE: LOADER}, {FILE: LOADER.replace("def last():\n", "def last():\n    count()\n")})
    stopped(mini, lambda: start(mini, loader=CHANGED.replace("    return 3\n", "    return 4\n")))
    settle(mini, SETTLED.replace("return 3", "return 4"))
    assert "There is no hook lost; there are choose, last." in stopped(mini, lambda: resume(mini, "lost"))
    assert outcomes(resume(mini, "last")) == [("choose", "settled"), ("last", "dropped")]
    holds(mini)


def test_a_hook_that_was_settled_can_be_dropped(mini: Miniature) -> None:
    mini.add_hook("last", {FILE: LOADER}, {FILE: LOADER.replace("def last():\n", "def last():\n    count()\n")})
    stopped(mini, lambda: start(mini, loader=CHANGED.replace("    return 3\n", "    return 4\n")))
    settle(mini, SETTLED.replace("    return 3\n", "    count()\n    return 4\n"))
    assert outcomes(resume(mini, "choose")) == [("choose", "dropped"), ("last", "settled")]
    assert "return 4" in (mini.root / "patches/last/1.2.patch").read_text()
    holds(mini)


def test_an_answer_can_be_amended(mini: Miniature) -> None:
    mini.add_hook("last", {FILE: LOADER}, {FILE: LOADER.replace("def last():\n", "def last():\n    count()\n")})
    stopped(mini, lambda: start(mini, loader=CHANGED.replace("    return 3\n", "    return 4\n")))
    settle(mini, SETTLED.replace("    return 3\n", "    count(1)\n    return 4\n"))
    git(mini, "commit", "--quiet", "--all", "--message", "work of today")
    settle(mini, SETTLED.replace("    return 3\n", "    count()\n    return 4\n"))
    git(mini, "commit", "--quiet", "--all", "--amend", "--no-edit")
    assert outcomes(resume(mini)) == [("choose", "settled"), ("last", "settled")]
    assert (mini.root / "patches/choose/1.2.patch").read_text() == VARIANT.replace("return 3", "return 4")
    holds(mini)


def test_an_abort_leaves_everything_as_it_was(mini: Miniature) -> None:
    before = mini.content()
    stopped(mini, lambda: start(mini, loader=CHANGED))
    settle(mini)
    Port(mini.project, mini.cache).abort()
    assert mini.content() == before
    assert not (mini.root / ".nox" / "porting").exists()
    start(mini)
    holds(mini)


def test_only_one_port_goes_on(mini: Miniature) -> None:
    stopped(mini, lambda: start(mini, loader=CHANGED))
    settle(mini)
    assert "A port to sglang 1.2 is in progress" in stopped(mini, lambda: start(mini, "1.3"))
    assert (worktree(mini) / FILE).read_text() == SETTLED
    resume(mini)
    holds(mini)


def test_without_a_port_there_is_nothing_to_go_on_with_or_to_give_up(mini: Miniature) -> None:
    port = Port(mini.project, mini.cache)
    for call in (port.resume, port.abort, lambda: port.resume(Wanted(drop=["choose"]))):
        assert "There is no port in progress" in stopped(mini, call)


def test_a_release_that_is_locked_or_cannot_be_had_leaves_nothing(
    mini: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = Port(mini.project, mini.cache)
    said = stopped(mini, lambda: port.start("1.1.0", lambda asked: mini.releases["1.1"]))
    assert "sglang 1.1 is locked already" in said
    assert "nox -s edit -- 1.1" in said

    def yanked(asked: str) -> Release:
        raise LockError(f"sglang {asked} was yanked.", hint="Take another.")

    assert "1.2 was yanked" in stopped(mini, lambda: port.start("1.2", yanked), LockError)
    monkeypatch.setattr("overlay_tools.downstream.port.fetch", refuse)
    assert "no network" in stopped(mini, lambda: start(mini), FetchError)
    assert not (mini.root / ".nox").exists()


def refuse(*words: object, **said: str) -> Path:
    raise FetchError("There is no network.", hint="Find one.")


def test_a_fetch_that_fails_keeps_what_is_settled(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(mini, lambda: start(mini, loader=CHANGED))
    settle(mini)
    with monkeypatch.context() as patched:
        patched.setattr("overlay_tools.downstream.port.fetch", refuse)
        stopped(mini, lambda: resume(mini), FetchError)
    resume(mini)
    holds(mini)


@pytest.mark.parametrize("fails", [True, False])
def test_a_release_that_cannot_be_fetched_any_more_leads_to_the_port_and_not_to_the_lock(
    mini: Miniature, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    def pip_download(what: str, wheel: LockedWheel, index: str, folder: Path) -> None:
        if fails:
            raise ToolError("There is no network.")

    stopped(mini, lambda: start(mini, loader=CHANGED))
    settle(mini)
    shutil.rmtree(mini.cache)
    monkeypatch.setattr("overlay_tools.upstream.download.pip_download", pip_download)
    said = stopped(mini, lambda: resume(mini), FetchError)
    assert "no network" in said if fails else "pip fetched nothing" in said
    assert "nox -s port -- --abort" in said
    assert "nox -s lock" not in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PATCH.replace("-3,5 +3,6", "-3,5 +3,9"), "1.0.patch:17: git cannot read the diff"),
        (PATCH.replace("<=1.1", "<=1.0"), "Hook choose has no variant for sglang 1.1"),
        (PATCH.replace("Why:", "Reason:"), "1.0.patch:2: unknown header Reason"),
    ],
)
def test_a_series_with_a_fault_is_not_carried_anywhere(mini: Miniature, text: str, said: str) -> None:
    mini.patch.write_text(text)
    assert said in stopped(mini, lambda: start(mini), PatchError)
    assert not (mini.root / ".nox").exists()


def test_a_series_broken_in_the_meantime_is_named(mini: Miniature) -> None:
    stopped(mini, lambda: start(mini, loader=CHANGED))
    settle(mini)
    mini.patch.write_text(PATCH.replace("Why:", "Reason:"))
    assert "1.0.patch:2: unknown header" in stopped(mini, lambda: resume(mini), PatchError)
    mini.patch.write_text(PATCH)
    resume(mini)
    holds(mini)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"release": 1, "dropped": [], "open": ""}', '{"dropped": []}',
                                  '{"release": "lock-version = 1", "dropped": [], "open": ""}', "\x00"])  # fmt: skip
def test_a_state_that_is_damaged_is_given_up(mini: Miniature, text: str) -> None:
    stopped(mini, lambda: start(mini, loader=CHANGED))
    path = mini.root / ".nox" / "porting" / "state.json"
    path.write_text(text)
    for call in (lambda: resume(mini), lambda: start(mini, "1.3")):
        said = stopped(mini, call)
        assert f"{path} is damaged" in said
        assert "--abort" in said
    Port(mini.project, mini.cache).abort()
    start(mini)
    holds(mini)


def test_a_contract_that_does_not_hold_stops_it_until_it_does(mini: Miniature) -> None:
    mini.write("overlay/sglang/models/ours.py", "from sglang.loader import last\n")
    loader = LOADER.replace("last", "latest")
    said = stopped(mini, lambda: start(mini, loader=loader))
    assert "overlay/sglang/models/ours.py:1: import" in said
    assert "ci/contract.toml" in said
    stopped(mini, lambda: resume(mini))
    mini.write("overlay/sglang/models/ours.py", "from sglang.loader import other\n")
    assert outcomes(resume(mini)) == [("choose", "exact")]
    holds(mini)


SCHED, PLANNER = "sglang/sched.py", "sglang/planner.py"


@pytest.fixture
def replacing(mini: Miniature) -> Miniature:
    """Return a project that has a file in the place of one of upstream's, in two releases."""
    for version in ("1.0", "1.1"):
        mini.lock_release(version, upstream_files(version) | {SCHED: b"A = 1\n"})
    text = (mini.root / "pyproject.toml").read_text()
    mini.write("pyproject.toml", text.replace("replaces = []", f'replaces = ["{SCHED}"]'))
    mini.write(f"overlay/{SCHED}", "A = 2\n")
    return mini


def test_a_file_that_would_replace_nothing_any_more_is_named(replacing: Miniature) -> None:
    said = stopped(replacing, lambda: port_to(replacing, "1.2", {PLANNER: "A = 1\n"}))
    assert f"pyproject.toml: `replaces` has {SCHED}, which sglang 1.1 has and 1.2 lacks" in said
    stopped(replacing, lambda: resume(replacing))
    replacing.limit({SCHED: "<1.2"})
    assert outcomes(resume(replacing)) == [("choose", "exact")]
    holds(replacing)


def test_a_file_that_is_replaced_still_stops_nothing(replacing: Miniature) -> None:
    port_to(replacing, "1.2", {SCHED: "A = 3\n"})
    holds(replacing)


def test_a_file_that_the_nearest_release_does_not_have_either_stops_nothing(replacing: Miniature) -> None:
    replacing.lock_release("1.1")
    port_to(replacing, "1.2", {})
    holds(replacing)


def test_a_file_that_upstream_has_too_now_is_named(mini: Miniature) -> None:
    said = stopped(mini, lambda: port_to(mini, "1.2", {"sglang/models/ours.py": "THEIRS = 1\n"}), BuildError)
    assert "overlay/sglang/models/ours.py exists upstream." in said
    assert "`replaces`" in said


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("sglang/srt/models/new.py", "class OursForCausalLM:\n    pass\n", "architecture OursForCausalLM"),
        ("sglang/srt/configs/new.py", "class New:\n    model_type = 'ours'\n", "model_type ours"),
    ],
)
def test_a_name_that_upstream_has_too_now_is_said_with_its_place(
    mini: Miniature, file: str, text: str, said: str
) -> None:
    derive(mini)
    mini.write("overlay/sglang/srt/configs/ours.py", "class OursConfig:\n    model_type = 'ours'\n")
    config = 'config="sglang.srt.configs.ours:OursConfig", base='
    mini.write(ROW_FILE, ROW.replace("base=", config))
    files = {name: textwrap.dedent(content) for name, content in UPSTREAM.items()}
    found = stopped(mini, lambda: port_to(mini, "1.2", {**files, file: text}))
    line = 2 if "configs" in file else 1
    assert f"collision {said}: upstream has one: {file}:{line}." in found


def test_the_contract_is_that_of_the_hooks_as_they_are_to_be(mini: Miniature) -> None:
    needs = PATCH.replace("+    config = choose(config)", "+    from sglang.loader import last")
    mini.patch.write_text(needs)
    said = stopped(mini, lambda: start(mini, loader=LOADER.replace("last", "latest")))
    assert "patches/choose/1.0.patch:14: import" in said
    mini.patch.write_text(PATCH)
    resume(mini)
    holds(mini)
    mini.patch.write_text(needs.replace("<=1.1", "<=1.2"))
    loader = CHANGED.replace("last", "latest")
    stopped(mini, lambda: start(mini, "1.3", loader=loader))
    settle(mini, loader.replace("(config):\n", "(config):\n    from sglang.loader import last\n"))
    assert "patches/choose/1.3.patch:14: import" in stopped(mini, lambda: resume(mini))
    settle(mini, loader.replace("(config):\n", "(config):\n    from sglang.loader import latest\n"))
    assert outcomes(resume(mini)) == [("choose", "settled")]
    holds(mini, "1.3")


def test_a_place_that_no_one_has_classified_stops_it(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    place = BaseMention(release="1.2", file=FILE, line=5, scope="get_model", what="string 'Base'")
    with monkeypatch.context() as patched:
        patched.setattr("overlay_tools.downstream.trial.find_base_mentions", lambda project, sources: [place])
        said = stopped(mini, lambda: start(mini))
        assert f"{FILE}:5: string 'Base' in get_model is not classified." in said
    resume(mini)
    holds(mini)


def test_a_fault_of_the_contracts_file_is_named_where_it_is(mini: Miniature) -> None:
    path = mini.write("ci/contract.toml", "nonsense = 1\n")
    assert f"{path}:1: unknown key 'nonsense'" in stopped(mini, lambda: start(mini), OverlayError)


def kill_at(number: int, call: Callable[[], object]) -> int:
    """Run something in a process that is killed before its file of this number is in its place."""
    child = os.fork()
    if child == 0:
        left, replace = iter(range(number)), Path.replace

        def replaced(path: Path, target: Path) -> Path:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(path, target)

        Path.replace = replaced  # type: ignore[assignment,method-assign]
        try:
            call()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("version", ["1.2", "0.9"])
def test_a_port_that_is_killed_can_be_begun_again(mini: Miniature, version: str) -> None:
    before = mini.content()
    release = mini.publish(version, upstream_files(version))
    port = Port(mini.project, mini.cache)
    for number in range(9):
        if kill_at(number, lambda: port.start(version, lambda asked: release)) == 0:
            break
        if number % 2:  # else the next start puts back what is half done
            with pytest.raises(PortError, match="There is no port in progress"):
                port.abort()
            assert mini.content() == before
    assert number >= 4  # the wheel, what is to be undone, a patch, the lock
    holds(mini, version)


def test_a_port_that_is_killed_while_it_settles_goes_on(mini: Miniature) -> None:
    stopped(mini, lambda: start(mini, loader=CHANGED))
    settle(mini)
    for number in range(40):
        if kill_at(number, lambda: resume(mini)) == 0:
            break
    assert number >= 9
    assert (mini.root / "patches/choose/1.2.patch").read_text() == VARIANT
    holds(mini)


def test_a_port_that_is_killed_as_it_opens_the_worktree_can_be_begun_again(mini: Miniature) -> None:
    before = mini.content()
    assert kill_at(0, lambda: start(mini, loader=CHANGED)) == -signal.SIGKILL  # before its state is there
    assert worktree(mini).exists()
    assert mini.content() == before
    stopped(mini, lambda: start(mini, loader=CHANGED))
    settle(mini)
    resume(mini)
    holds(mini)


def test_a_worktree_that_is_gone_is_opened_again(mini: Miniature) -> None:
    stopped(mini, lambda: start(mini, loader=CHANGED))
    shutil.rmtree(worktree(mini))
    stopped(mini, lambda: resume(mini))
    assert worktree(mini).exists()
    shutil.rmtree(worktree(mini))
    assert outcomes(resume(mini, "choose")) == [("choose", "dropped")]
    holds(mini)


def test_a_hook_whose_target_is_gone_is_settled_by_hand_or_dropped(mini: Miniature) -> None:
    said = stopped(mini, lambda: port_to(mini, "1.2", {FILE: None, ENGINE_FILE: ENGINE}))
    assert f"target gone: {FILE} is gone" in said
    assert git(mini, "status", "--porcelain") == ""
    settle(mini, ENGINE.replace("    model = build(config)\n", "    model = build(choose(config))\n"), ENGINE_FILE)
    assert outcomes(resume(mini)) == [("choose", "settled")]
    assert f"+++ b/{ENGINE_FILE}" in (mini.root / "patches/choose/1.2.patch").read_text()
    holds(mini)


def test_a_text_of_upstreams_that_looks_like_a_marker_is_none(mini: Miniature) -> None:
    title = '"""\nTitle\n=======\n"""\n'
    stopped(mini, lambda: start(mini, loader=title + CHANGED))
    settle(mini, title + SETTLED)
    resume(mini)
    holds(mini)


def test_a_large_hook_of_a_users_own_is_carried_over_three_releases(mini: Miniature) -> None:
    cache, engine, text = "sglang/cache.py", ENGINE_FILE, "sglang/übersetzung.txt"
    head, tail = ENGINE.split("class Engine")
    old = {cache: head, engine: f"import os\n\n\nclass Engine{tail}", FILE: LOADER, text: "schön\n"}
    new = dict(old)
    for name, before, after in [
        (cache, "size = 4", "size = 8"),
        (cache, "        self.table[key] = entry\n", "        self.keep(entry)\n"),
        (engine, "        self.count += 1\n", "        self.count += 1\n        out = ours(out)\n"),
        (engine, "    model = build(config)\n", "    model = build(config)\n    model = ours(model)\n"),
        (FILE, "return 3", "return 4"),
        (text, "schön", "schöner"),
    ]:
        assert before in new[name]
        new[name] = new[name].replace(before, after)
    for version in ("1.0", "1.1"):
        mini.lock_release(version, upstream_files(version) | {name: data.encode() for name, data in old.items()})
    mini.write("patches/series", "")
    shutil.rmtree(mini.root / "patches/choose")
    mini.add_hook("mine", old, new)
    assert lint(load_series(mini.root / "patches"), ["1.0", "1.1"]) == []

    # Everything stands a little further down.
    further = {name: data if name == text else f"# {name}\n{data}" for name, data in old.items()}
    rows = port_to(mini, "1.2", further)
    assert [outcome for _, _, outcome, _ in rows] == ["offset 1"] * 5 + ["exact"]
    holds(mini)

    # One file has another name, one function has changed.
    moved = {**further, "sglang/memory.py": head}
    del moved[cache]
    moved[engine] = moved[engine].replace("    config = read(path)\n", "    config = read(path, True)\n")
    said = stopped(mini, lambda: port_to(mini, "1.3", moved))
    assert said.count("moved: from sglang/cache.py, which is gone") == 2
    assert said.count("conflict: lines around it changed") == 1
    accept(mini, "sglang/memory.py", engine)
    resume(mini)
    holds(mini, "1.3")
    variant = (mini.root / "patches/mine/1.3.patch").read_text()
    assert "Applies: ==1.3\n" in variant
    assert re.findall(r"(?m)^\+\+\+ b/(.*)$", variant) == [engine, FILE, "sglang/memory.py", text]
    assert [line[1:].strip() for line in variant.splitlines() if line[0:1] == "+" and line[:3] != "+++"] == [
        "out = ours(out)", "model = ours(model)", "return 4", "size = 8", "self.keep(entry)", "schöner"
    ]  # fmt: skip

    # The next release takes the new variant, an older one the old.
    assert {outcome for _, _, outcome, _ in port_to(mini, "1.4", moved)} == {"exact"}
    assert {outcome for _, _, outcome, _ in port_to(mini, "0.9", old)} == {"exact"}
    assert {name for name in mini.content() if "mine" in name} == {"patches/mine/0.9.patch", "patches/mine/1.3.patch"}
    (hook,) = load_series(mini.root / "patches")
    assert [str(patch.applies) for patch in hook.variants] == ["<=1.2,>=0.9", "<=1.4,>=1.3"]
    for version in ("0.9", "1.4"):
        holds(mini, version)
