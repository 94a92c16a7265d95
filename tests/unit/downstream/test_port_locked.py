"""`port` and a release that is locked already: it takes the hooks that it is asked to, and keeps those that it has."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from overlay_tools import cli
from overlay_tools.downstream.follow import HunkReport
from overlay_tools.downstream.port import Port
from overlay_tools.downstream.selection import Wanted
from overlay_tools.errors import PortError
from overlay_tools.patches.lint import lint
from overlay_tools.patches.series import load_series
from overlay_tools.upstream.lockfile import Release

from unit.conftest import LOADER, Miniature, upstream_files
from unit.downstream.porting import stopped, takes, worktree

FILE = "sglang/loader.py"
OTHER = ("def other():\n", "def other():\n    count()\n")
LAST = ("def last():\n", "def last():\n    final()\n")


def add(mini: Miniature, name: str, old: str, new: str, due: str = "==1.0") -> None:
    """Add a hook that is due for 1.0 alone."""
    mini.add_hook(name, {FILE: old}, {FILE: new}, due)
    series = (mini.root / "patches/series").read_text()
    mini.write("patches/series", series.replace(f"{name}\n", f"{name} {due}\n"))


@pytest.fixture
def fork(mini_here: Miniature) -> Miniature:
    """Return a project with `choose` in both of its releases, and with two hooks more in 1.0."""
    hooked = LOADER.replace("(config):\n", "(config):\n    config = choose(config)\n")
    add(mini_here, "kt-other", hooked, hooked.replace(*OTHER))
    add(mini_here, "kt-last", hooked, hooked.replace(*LAST))
    assert lint(load_series(mini_here.root / "patches"), list(mini_here.lock)) == []
    return mini_here


def not_asked(version: str) -> Release:
    raise AssertionError("the index is asked for a release that is locked")


def carry(mini: Miniature, **wanted: Sequence[str]) -> list[HunkReport]:
    return Port(mini.project, mini.cache).start("1.1", not_asked, Wanted(**wanted))


def resume(mini: Miniature, **wanted: Sequence[str]) -> list[HunkReport]:
    return Port(mini.project, mini.cache).resume(Wanted(**wanted))


def holds(mini: Miniature, *hooks: str, version: str = "1.1") -> None:
    takes(mini, version, hooks)


def refused(mini: Miniature, **wanted: Sequence[str]) -> str:
    return stopped(mini, lambda: carry(mini, **wanted))


def outcomes(rows: Sequence[HunkReport]) -> list[tuple[str, str]]:
    return [(row.hook, row.outcome) for row in rows]


def change_locked(mini: Miniature, version: str, loader: str) -> None:
    mini.lock_release(version, upstream_files(version) | {FILE: loader.encode()})


def test_hooks_are_carried_to_a_locked_release(fork: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    lock = (fork.root / "upstream.lock").read_bytes()
    rows = carry(fork, take=["kt-last"])
    assert outcomes(rows) == [("choose", "stays"), ("kt-last", "exact")]
    said = capsys.readouterr().out
    assert "choose  " not in said
    assert "in all: 1 stays, 1 exact" in said
    assert "sglang 1.1 takes what was carried to it.\n  patches/kt-last/1.0.patch\n  patches/series\n" in said
    assert (fork.root / "upstream.lock").read_bytes() == lock
    assert (fork.root / "patches/series").read_text() == "choose\nkt-other ==1.0\nkt-last\n"
    holds(fork, "choose", "kt-last")


def test_a_pattern_takes_all_hooks_that_it_matches(fork: Miniature) -> None:
    assert outcomes(carry(fork, take=["*"])) == [("choose", "stays"), ("kt-other", "exact"), ("kt-last", "offset 1")]
    holds(fork, "choose", "kt-other", "kt-last")


@pytest.mark.parametrize(
    ("take", "leave", "taken"),
    [
        (["kt-*"], ["*-last"], ["kt-other"]),
        (["kt-last"], ["*"], ["kt-last"]),
        (["*"], ["kt-other"], ["kt-last"]),
        (["k[a-z]-?ther"], [], ["kt-other"]),
    ],
)
def test_a_name_goes_before_a_pattern_and_leave_before_take(
    fork: Miniature, take: list[str], leave: list[str], taken: list[str]
) -> None:
    assert outcomes(carry(fork, take=take, leave=leave)) == [("choose", "stays"), *((name, "exact") for name in taken)]
    holds(fork, "choose", *taken)


def test_a_locked_release_says_how_hooks_are_carried_to_it(fork: Miniature) -> None:
    for leave in ([], ["*"]):
        said = refused(fork, leave=leave)
        assert "sglang 1.1 is locked already." in said
        assert "`nox -s port -- 1.1 --take HOOK` carries a hook to it that is not due there (kt-other, kt-last;" in said
        assert "`nox -s edit -- 1.1` opens it" in said
    assert not (fork.root / ".nox").exists()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"take": ["lost"]}, "There is no hook lost; there are choose, kt-other, kt-last."),
        ({"take": ["choose"]}, "Hook choose is due at sglang 1.1."),
        ({"take": ["*.py"]}, "No hook that is not due at sglang 1.1 matches '*.py'."),
        ({"take": ["ch*"]}, "No hook that is not due at sglang 1.1 matches 'ch*'."),
        ({"take": ["*"], "leave": ["x*"]}, "No hook that is not due at sglang 1.1 matches 'x*'."),
        ({"drop": ["kt-last"]}, "Hook kt-last is not due at sglang 1.1."),
        ({"drop": ["kt-*"]}, "No hook that is due at sglang 1.1 matches 'kt-*'."),
    ],
)
def test_what_means_no_hook_is_refused(fork: Miniature, wanted: dict[str, list[str]], said: str) -> None:
    assert said in refused(fork, **wanted)


def test_a_hook_is_dropped_at_a_locked_release(fork: Miniature) -> None:
    assert outcomes(carry(fork, drop=["ch*"])) == [("choose", "dropped")]
    assert (fork.root / "patches/series").read_text().startswith("choose <=1.0\n")
    holds(fork)


def test_a_hook_that_would_be_due_nowhere_is_removed_by_hand(fork: Miniature) -> None:
    fork.write("patches/series", "choose\nkt-other ==1.0\nkt-last ==1.0\n")
    before = fork.content()
    with pytest.raises(PortError) as caught:
        Port(fork.project, fork.cache).start("1.0", not_asked, Wanted(drop=["*"]))
    assert caught.value.problems == (
        "Hook kt-other is due at sglang 1.0 alone.",
        "Hook kt-last is due at sglang 1.0 alone.",
    )
    assert "patches/series" in caught.value.hint
    assert fork.content() == before
    assert not (fork.root / ".nox").exists()


def test_a_hook_taken_before_one_that_is_due_leaves_it_as_it_is(fork: Miniature) -> None:
    moved = LOADER.replace(*OTHER)
    fork.write("patches/series", "kt-other ==1.0\nchoose\n")
    add(fork, "kt-other", LOADER, moved)
    fork.write("patches/series", "kt-other ==1.0\nchoose\nkt-last ==1.0\n")
    assert outcomes(carry(fork, take=["kt-other"])) == [("kt-other", "exact"), ("choose", "offset 1")]
    assert len([*(fork.root / "patches/choose").iterdir()]) == 1
    holds(fork, "kt-other", "choose")


def test_a_hook_that_is_due_and_no_longer_applies_is_settled_as_any_other(fork: Miniature) -> None:
    hooked = LOADER.replace("    name = config.name\n", "    name = config.title\n")
    fork.write("patches/series", "kt-first ==1.0\nchoose ==1.1\nkt-other ==1.0\nkt-last ==1.0\n")
    patch = (fork.root / "patches/choose/1.0.patch").read_text().replace(">=1.0,<=1.1", "==1.1")
    fork.write("patches/choose/1.1.patch", patch)
    (fork.root / "patches/choose/1.0.patch").unlink()
    series = (fork.root / "patches/series").read_text()
    fork.add_hook("kt-first", {FILE: LOADER}, {FILE: hooked}, "==1.0")
    fork.write("patches/series", series)
    assert "patches/choose/1.1.patch:10: conflict: lines around it changed" in refused(fork, take=["kt-first"])
    settled = hooked.replace("(config):\n", "(config):\n    config = choose(config, 2)\n")
    (worktree(fork) / FILE).write_text(settled)
    assert outcomes(resume(fork)) == [("kt-first", "exact"), ("choose", "settled")]
    assert [path.name for path in (fork.root / "patches/choose").iterdir()] == ["1.1.patch"]
    holds(fork, "kt-first", "choose")


def test_an_open_hook_of_a_locked_release_is_settled_dropped_or_given_up(fork: Miniature) -> None:
    change_locked(fork, "1.1", LOADER.replace("    return 3\n", "    return 4\n"))
    before = fork.content()
    for end in ("settle", "drop", "abort"):
        assert "kt-last/1.0.patch" in refused(fork, take=["kt-*"])
        if end == "abort":
            Port(fork.project, fork.cache).abort()
            continue
        text = (worktree(fork) / FILE).read_text()
        (worktree(fork) / FILE).write_text(text[: text.index("<<<<<<<")] + "    final()\n    return 4\n")
        if end == "settle":
            assert outcomes(resume(fork)) == [("choose", "stays"), ("kt-other", "exact"), ("kt-last", "settled")]
            holds(fork, "choose", "kt-other", "kt-last")
            assert (fork.root / "patches/kt-last/1.1.patch").exists()
        else:
            assert outcomes(resume(fork, drop=["kt-last"]))[-1] == ("kt-last", "dropped")
            holds(fork, "choose", "kt-other")
        for name in fork.content().keys() - before.keys():
            (fork.root / name).unlink()
        for name, data in before.items():
            (fork.root / name).write_bytes(data)
    assert fork.content() == before


def test_the_command_takes_patterns(fork: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["port", "1.1"]) == 1
    assert "--take HOOK" in capsys.readouterr().err
    assert cli.main(["port", "1.1", "--take", "kt-o*", "--take", "kt-last"]) == 0
    holds(fork, "choose", "kt-other", "kt-last")


def test_the_command_gives_up(fork: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    change_locked(fork, "1.1", LOADER.replace("    return 3\n", "    return 4\n"))
    assert cli.main(["port", "1.1", "--take", "*"]) == 1
    assert cli.main(["port", "--abort"]) == 0
    assert "Given up" in capsys.readouterr().out
    assert not (fork.root / ".nox/porting").exists()
