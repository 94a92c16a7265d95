"""`port` and hooks that are not due at the new release: a row for each, and a question where one may be needed."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from overlay_tools import cli
from overlay_tools.downstream.follow import HunkReport
from overlay_tools.downstream.not_due import is_near
from overlay_tools.downstream.port import Port
from overlay_tools.downstream.selection import Wanted
from overlay_tools.patches.lint import lint
from overlay_tools.patches.series import load_series

from unit.conftest import LOADER, PATCH, Miniature, upstream_files
from unit.downstream.porting import stopped, takes, worktree

FILE = "sglang/loader.py"
CHANGED = LOADER.replace("    name = config.name\n", "    name = config.title\n")  # in the context of `choose`
FITS = "fits exactly, as it does 1.1"


@pytest.fixture
def narrow(mini_here: Miniature) -> Miniature:
    """Return a project whose hook is due for 1.1 alone."""
    mini_here.write("patches/series", "choose ==1.1\n")
    (mini_here.root / "patches/choose/1.0.patch").rename(mini_here.root / "patches/choose/1.1.patch")
    mini_here.write("patches/choose/1.1.patch", PATCH.replace(">=1.0,<=1.1", "==1.1"))
    assert lint(load_series(mini_here.root / "patches"), list(mini_here.lock)) == []
    return mini_here


def add_other(mini: Miniature) -> None:
    """Add a hook beside `choose` for 1.1 alone, which touches other lines of the same file."""
    changed = LOADER.replace("def other():\n", "def other():\n    count()\n")
    path = mini.add_hook("other", {FILE: LOADER}, {FILE: changed}, "==1.1")
    path.rename(path.with_name("1.1.patch"))
    mini.write("patches/series", "choose ==1.1\nother ==1.1\n")


def begin(
    mini: Miniature, version: str, loader: str = LOADER, take: Sequence[str] = (), leave: Sequence[str] = ()
) -> list[HunkReport]:
    release = mini.publish(version, upstream_files(version) | {FILE: loader.encode()})
    return Port(mini.project, mini.cache).start(version, lambda asked: release, Wanted(take=take, leave=leave))


def resume(mini: Miniature, *drop: str, take: Sequence[str] = (), leave: Sequence[str] = ()) -> list[HunkReport]:
    return Port(mini.project, mini.cache).resume(Wanted(take=take, leave=leave, drop=drop))


def outcomes(rows: list[HunkReport]) -> list[tuple[str, str]]:
    return [(row.hook, row.outcome) for row in rows]


@pytest.mark.parametrize("version", ["1.1.post1", "1.2", "1.0.post1"])
def test_a_hook_that_fits_beside_a_release_that_takes_it_is_a_question(
    narrow: Miniature, version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = stopped(narrow, lambda: begin(narrow, version))
    assert f"Hook choose is not due at sglang {version}, but fits there: is it needed?" in said
    assert f"`nox -s port -- {version} --take choose` takes it; `--leave`" in said
    assert f"choose         not due  {FITS}" in capsys.readouterr().out
    assert not (narrow.root / ".nox/porting").exists()


def test_a_hook_that_is_taken_is_due_there_too(narrow: Miniature) -> None:
    assert begin(narrow, "1.1.post1", take=["choose"]) == [("choose", f"{FILE}:3", "exact", "get_model unchanged")]
    assert (narrow.root / "patches/series").read_text() == "choose >=1.1\n"
    assert "Applies: >=1.1,<=1.1.post1\n" in (narrow.root / "patches/choose/1.1.patch").read_text()
    takes(narrow, "1.1.post1", ["choose"])


def test_a_hook_that_is_left_stays_as_it_is(narrow: Miniature) -> None:
    before = narrow.content()
    assert begin(narrow, "1.1.post1", leave=["choose"]) == [("choose", "", "not due", FITS)]
    after = narrow.content()
    assert {name for name in after if after[name] != before.get(name)} == {"upstream.lock"}
    takes(narrow, "1.1.post1", [])


def test_a_hook_that_fits_far_from_those_that_take_it_gives_a_row(narrow: Miniature) -> None:
    begin(narrow, "1.2", leave=["choose"])
    assert begin(narrow, "1.3") == [("choose", "", "not due", FITS)]
    takes(narrow, "1.3", [])


def test_a_hook_that_does_not_fit_gives_a_row(narrow: Miniature) -> None:
    ((hook, place, outcome, note),) = begin(narrow, "1.2", CHANGED)
    assert (hook, place, outcome) == ("choose", "", "not due")
    assert note == "does not fit: conflict"
    takes(narrow, "1.2", [])


@pytest.mark.parametrize(
    ("version", "taking", "near"),
    [
        ("1.0.post1", ["1.0"], True),  # the next one
        ("0.9.1", ["1.0"], True),  # the one before
        ("0.7", ["1.0"], False),
        ("1.3", ["1.0"], False),
        ("1.2.post3", ["1.2"], True),  # another of the same version
        ("1.3", ["1.2"], False),
        ("1.3", ["1.2.post1"], False),
        ("1.3", ["1.2.post2"], True),
        ("1.3", ["1.0", "2.0"], True),  # between two
        ("2.1", ["1.0", "2.0"], True),
        ("2.2", ["1.0", "1.2"], False),
    ],
)
def test_near_is_between_beside_or_of_the_same_version(version: str, taking: list[str], near: bool) -> None:
    assert is_near(version, taking, ["0.8", "1.0", "1.2", "1.2.post1", "1.2.post2", "1.4", "2.0"]) is near


def publish_on_index(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the index have 1.2."""
    release = mini.publish("1.2", upstream_files("1.2"))
    monkeypatch.setattr("overlay_tools.upstream.asked.query_release", lambda version, index: release)


def test_on_a_terminal_it_is_asked(
    narrow: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_other(narrow)
    publish_on_index(narrow, monkeypatch)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked, answers = [], iter(["", "what?", "Y", "no"])

    def answer(question: str) -> str:
        asked.append(question)
        return next(answers)

    monkeypatch.setattr("builtins.input", answer)
    assert cli.main(["port", "1.2"]) == 0
    assert asked[0] == f"Hook choose is not due, but {FITS}. Is it needed? [y/n] "
    assert [question.split()[1] for question in asked] == ["choose", "choose", "choose", "other"]
    assert "sglang 1.2 is locked." in capsys.readouterr().out
    takes(narrow, "1.2", ["choose"])


def test_a_terminal_that_is_closed_gives_no_answer(
    narrow: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def closed(question: str) -> str:
        raise EOFError

    publish_on_index(narrow, monkeypatch)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", closed)
    assert cli.main(["port", "1.2"]) == 1
    assert "--take choose" in capsys.readouterr().err
    assert "1.2" not in narrow.lock


def test_without_a_terminal_arguments_answer(
    narrow: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_other(narrow)
    publish_on_index(narrow, monkeypatch)
    assert cli.main(["port", "1.2"]) == 1
    assert "`nox -s port -- 1.2 --take choose --take other` takes them" in capsys.readouterr().err
    assert cli.main(["port", "1.2", "--leave", "choose"]) == 1
    assert "`nox -s port -- 1.2 --leave choose --take other` takes it" in capsys.readouterr().err
    assert cli.main(["port", "1.2", "--leave", "choose", "--take", "other"]) == 0
    takes(narrow, "1.2", ["other"])


def test_a_hook_that_does_not_fit_can_be_taken_and_is_settled(narrow: Miniature) -> None:
    assert "conflict" in stopped(narrow, lambda: begin(narrow, "1.2", CHANGED, take=["choose"]))
    settled = CHANGED.replace("(config):\n", "(config):\n    config = choose(config, 2)\n")
    (worktree(narrow) / FILE).write_text(settled)
    assert outcomes(resume(narrow)) == [("choose", "settled")]
    assert (narrow.root / "patches/series").read_text() == "choose >=1.1\n"
    takes(narrow, "1.2", ["choose"])


def test_a_hook_that_was_taken_can_be_dropped_again(narrow: Miniature) -> None:
    before = narrow.content()
    stopped(narrow, lambda: begin(narrow, "1.2", CHANGED, take=["choose"]))
    assert outcomes(resume(narrow, "choose")) == [("choose", "dropped")]
    after = narrow.content()
    assert {name for name in after if after[name] != before.get(name)} == {"upstream.lock"}
    takes(narrow, "1.2", [])


def test_what_was_answered_holds_while_another_hook_is_settled(narrow: Miniature) -> None:
    add_other(narrow)
    narrow.add_hook("final", {FILE: LOADER}, {FILE: LOADER.replace("last():\n", "last():\n    final()\n")})
    loader = LOADER.replace("    return 3\n", "    return 4\n")
    stopped(narrow, lambda: begin(narrow, "1.2", loader, take=["choose"], leave=["other"]))
    state = json.loads((narrow.root / ".nox/porting/state.json").read_text())
    assert (state["taken"], state["left"]) == (["choose"], ["other"])
    said = stopped(narrow, lambda: resume(narrow, leave=["choose"]))
    assert "Hook choose has a commit in" in said
    assert "--abort" in said
    text = (worktree(narrow) / FILE).read_text()
    (worktree(narrow) / FILE).write_text(text[: text.index("<<<<<<<")] + "    final()\n    return 4\n")
    assert outcomes(resume(narrow)) == [("choose", "exact"), ("other", "not due"), ("final", "settled")]
    takes(narrow, "1.2", ["choose", "final"])


def test_a_question_that_comes_up_while_hooks_are_settled_is_answered_with_continue(mini: Miniature) -> None:
    hooked = LOADER.replace("(config):\n", "(config):\n    config = choose(config)\n")
    after = hooked.replace("choose(config)\n", "choose(config)\n    log(config)\n")
    then = after.replace("log(config)\n", "log(config)\n    log(config)\n")
    for name, old, new in (("after", hooked, after), ("then", after, then)):
        path = mini.add_hook(name, {FILE: old}, {FILE: new}, "==1.1")
        path.rename(path.with_name("1.1.patch"))
    mini.write("patches/series", "choose\nafter ==1.1\nthen ==1.1\n")
    stopped(mini, lambda: begin(mini, "1.2", CHANGED))  # `after` does not fit what is proposed for `choose`
    (worktree(mini) / FILE).write_text(hooked)
    for _ in range(2):
        said = stopped(mini, lambda: resume(mini))
        assert "Hook after is not due at sglang 1.2, but fits there" in said
        assert "`nox -s port -- --continue --take after` takes it" in said
    assert "-- --continue --take then`" in stopped(mini, lambda: resume(mini, take=["after"]))
    rows = resume(mini, leave=["then"])
    assert outcomes(rows) == [("choose", "settled"), ("after", "exact"), ("then", "not due")]
    takes(mini, "1.2", ["choose", "after"])


@pytest.mark.parametrize("option", ["--take", "--leave"])
def test_only_what_is_not_due_is_answered_for(narrow: Miniature, option: str) -> None:
    add_other(narrow)
    narrow.write("patches/series", "choose ==1.1\nother >=1.1\n")
    for name, said in [
        ("lost", "There is no hook lost; there are choose, other."),
        ("other", "Hook other is due at sglang 1.2."),
    ]:
        take, leave = ([name], []) if option == "--take" else ([], [name])
        assert said in stopped(narrow, lambda: begin(narrow, "1.2", take=take, leave=leave))  # noqa: B023


def test_a_range_that_a_variant_has_and_the_series_has_not_makes_nothing_due(mini: Miniature) -> None:
    mini.write("patches/series", "choose !=1.0.post1\n")
    assert outcomes(begin(mini, "1.0.post1", leave=["choose"])) == [("choose", "not due")]
    assert (mini.root / "patches/series").read_text() == "choose !=1.0.post1\n"
    assert mini.patch.read_text() == PATCH.replace("<=1.1", "<=1.1,!=1.0.post1")
    takes(mini, "1.0.post1", [])
