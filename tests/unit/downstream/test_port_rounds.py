"""`port` with several open hooks: all lie in the worktree at once, and each change there goes to the hook it is of."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Sequence

import pytest
from overlay_tools.archive.mode import with_mode
from overlay_tools.downstream import follow, port, port_worktree
from overlay_tools.downstream.diff import make_diff
from overlay_tools.downstream.follow import HunkReport
from overlay_tools.downstream.port import Port
from overlay_tools.downstream.port_state import PortState
from overlay_tools.downstream.selection import Wanted
from overlay_tools.downstream.worktree import OVERLAY
from overlay_tools.errors import OverlayError, PortError
from overlay_tools.patches.lint import lint
from overlay_tools.patches.series import load_series

from unit.conftest import HEADER, Miniature, upstream_files
from unit.downstream.porting import git, stopped, takes, worktree

FILE, ENGINE, TEXT = "sglang/loader.py", "sglang/engine.py", "sglang/text.py"
NAMES = ("alpha", "beta", "gamma", "delta")


def functions(marks: str = "", **bodies: str) -> str:
    """Return a file of functions, each of which does three things, or what is given."""
    names = [*NAMES, *(name for name in bodies if name not in NAMES)]
    body = "    first_{0}()\n    second_{0}{1}()\n    third_{0}()\n"
    return "\n\n".join(f"def {name}():\n{bodies.get(name, body.format(name, marks))}" for name in names)


OLD = functions()
NEW = functions("_new")  # where each hook below conflicts


def hooked(text: str, name: str, line: str = "", after: str = "") -> str:
    """Add the line of a hook to its function."""
    after = after or f"    first_{name}()\n"
    assert text.count(after) == 1
    return text.replace(after, f"{after}{line or f'    ours_{name}()'}\n")


@pytest.fixture
def chain(mini_here: Miniature) -> Miniature:
    """Return a project with a hook in each function of one file, and in 1.0 and 1.1 the files that they apply to."""
    mini = mini_here
    for version in ("1.0", "1.1"):
        mini.lock_release(version, upstream_files(version) | {ENGINE: OLD.encode()})
    mini.write("patches/series", "choose\n")
    text = OLD
    for name in NAMES:
        mini.add_hook(name, {ENGINE: text}, {ENGINE: (text := hooked(text, name))})
    assert lint(load_series(mini.root / "patches"), list(mini.lock)) == []
    return mini


def start(mini: Miniature, engine: str = NEW, version: str = "1.2", **files: str) -> list[HunkReport]:
    content = {ENGINE: engine, **{f"sglang/{name}.py": text for name, text in files.items()}}
    release = mini.publish(version, upstream_files(version) | {name: text.encode() for name, text in content.items()})
    return Port(mini.project, mini.cache).start(version, lambda asked: release)


def resume(mini: Miniature, *drop: str, take: Sequence[str] = ()) -> list[HunkReport]:
    return Port(mini.project, mini.cache).resume(Wanted(drop=drop, take=take))


def kept(mini: Miniature, call: Callable[[], object], kind: type[OverlayError] = PortError) -> str:
    """Expect an error, and the worktree to the byte as a person left it."""
    before = read(mini), git(mini, "log", "--format=%H"), git(mini, "status", "--porcelain")
    said = stopped(mini, call, kind)
    assert (read(mini), git(mini, "log", "--format=%H"), git(mini, "status", "--porcelain")) == before
    return said


def outcomes(rows: Sequence[HunkReport]) -> dict[str, str]:
    return {row.hook: row.outcome for row in rows}


def read(mini: Miniature, file: str = ENGINE) -> str:
    return (worktree(mini) / file).read_text()


def write(mini: Miniature, text: str, file: str = ENGINE) -> None:
    (worktree(mini) / file).write_text(text)


def change(mini: Miniature, old: str, new: str, file: str = ENGINE) -> None:
    text = read(mini, file)
    assert text.count(old) == 1
    write(mini, text.replace(old, new), file)


def accept(mini: Miniature, file: str = ENGINE, hook: str = r"\w+") -> None:
    """Settle every conflict of a file, or that of one hook, by taking the hook's lines."""
    conflict = rf"(?ms)^<{{7}} [^\n]*\n(?:(?!<{{7}} ).)*?^={{7}}\n((?:(?!<{{7}} ).)*?)^>{{7}} {hook}\n"
    write(mini, re.sub(conflict, r"\1", read(mini, file)), file)


def hooks_with_commits(mini: Miniature) -> list[str]:
    return re.findall(r"(?m)^    Hook: (.*)$", git(mini, "log", "--reverse", f"{OVERLAY}..HEAD"))


def sha(mini: Miniature, hook: str) -> str:
    return git(mini, "log", "--format=%h", f"--grep=^Hook: {hook}$").strip()


def added(mini: Miniature, hook: str, version: str = "1.2") -> list[str]:
    """Return the lines that the variant of a release adds."""
    (found,) = (h for h in load_series(mini.root / "patches") if h.name == hook)
    patch = found.variant(version)
    assert patch is not None
    return [line.value.strip() for file in patch.files for hunk in file for line in hunk if line.is_added]


def holds(mini: Miniature, *hooks: str, version: str = "1.2", engine: str = "") -> None:
    """Expect a release to be locked with these hooks, and its wheel to have a file as it was settled."""
    takes(mini, version, hooks or ("choose", *NAMES))
    if engine:
        with zipfile.ZipFile(mini.build(version).path) as wheel:
            assert wheel.read(ENGINE).decode() == engine


def settled(*lines: str) -> str:
    text = NEW
    for name, line in zip(NAMES, lines, strict=True):
        text = hooked(text, name, line) if line else text
    return text


def test_every_open_hook_lies_in_the_worktree_under_its_name(chain: Miniature) -> None:
    said = stopped(chain, lambda: start(chain))
    assert [name for name in NAMES if f"patches/{name}/1.0.patch" in said] == [*NAMES]
    assert hooks_with_commits(chain) == ["choose", *NAMES]
    text = read(chain)
    for name in NAMES:
        marked = f"<<<<<<< sglang 1.2\n=======\n    ours_{name}()\n>>>>>>> {name}\n"
        assert hooked(NEW, name, marked[:-1]).split(f"def {name}")[1][:90] in text
        assert f"+>>>>>>> {name}\n" in git(chain, "show", sha(chain, name))
    assert git(chain, "status", "--porcelain") == ""
    accept(chain)
    assert outcomes(resume(chain)) == {"choose": "exact", **dict.fromkeys(NAMES, "settled")}
    holds(chain, engine=settled(*("    ours_" + name + "()" for name in NAMES)))


def test_each_change_goes_to_the_hook_whose_lines_it_touches(chain: Miniature) -> None:
    stopped(chain, lambda: start(chain))
    text = settled("    ours_alpha(1)", "    ours_beta(2)\n    more()", "    a = 1", "    ours_delta()")
    write(chain, text)
    resume(chain)
    assert [added(chain, name) for name in NAMES] == [
        ["ours_alpha(1)"], ["ours_beta(2)", "more()"], ["a = 1"], ["ours_delta()"]
    ]  # fmt: skip
    holds(chain, engine=text)


def test_what_is_kept_aside_does_not_go_with_the_worktree(chain: Miniature) -> None:
    stopped(chain, lambda: start(chain))
    text = settled(*("    ours_" + name + "()" for name in NAMES))
    write(chain, text)
    git(chain, "stash", "push", "--quiet", "--message=first try")
    git(chain, "checkout", "--quiet", "-b", "try")
    git(chain, "commit", "--quiet", "--allow-empty", "--message=another")
    git(chain, "checkout", "--quiet", "main")
    write(chain, text)
    said = stopped(chain, lambda: resume(chain))
    assert "stash stash@{0} (On main: first try) is in no hook, and would go with the worktree." in said
    assert "branch try is in no hook" in said
    assert git(chain, "stash", "list")
    git(chain, "stash", "drop", "--quiet")
    git(chain, "branch", "--quiet", "-D", "try")
    resume(chain)
    holds(chain, engine=text)


def test_what_is_changed_while_the_release_is_tried_is_kept(chain: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(chain, lambda: start(chain))
    text = settled(*("    ours_" + name + "()" for name in NAMES))
    write(chain, text)
    with monkeypatch.context() as patched:
        patched.setattr(port, "build_and_verify", lambda *_: write(chain, text + "# more\n"))
        assert "has changed since it was read" in stopped(chain, lambda: resume(chain))
    assert read(chain) == text + "# more\n"
    write(chain, text)
    resume(chain)
    holds(chain, engine=text)


def test_remaining_markers_are_named_all_at_once(chain: Miniature) -> None:
    stopped(chain, lambda: start(chain))
    accept(chain, hook="beta")
    change(chain, ">>>>>>> gamma\n", "")
    said = kept(chain, lambda: resume(chain))
    lines = read(chain).splitlines()
    for name, count in (("alpha", 3), ("beta", 0), ("gamma", 2), ("delta", 3)):
        assert said.count(f"a conflict marker of hook {name} is left") == count
    for number in (n for n, line in enumerate(lines, 1) if line[:7] in ("<" * 7, "=" * 7, ">" * 7)):
        assert f"{worktree(chain) / ENGINE}:{number}: " in said


def test_hooks_are_settled_with_plain_git_too(chain: Miniature) -> None:
    stopped(chain, lambda: start(chain))
    accept(chain, hook="alpha")
    git(chain, "commit", "--quiet", "--all", f"--fixup={sha(chain, 'alpha')}")
    accept(chain, hook="beta")
    git(chain, "commit", "--quiet", "--all", "--message", "wip")
    accept(chain, hook="gamma")
    git(chain, "commit", "--quiet", "--all", "--message", "more", "--message", "Hook: gamma")
    accept(chain, hook="delta")
    git(chain, "commit", "--quiet", "--all", "--amend", "--no-edit")  # of the commit before: the trailer says so
    change(chain, "ours_beta()", "ours_beta(2)")
    assert outcomes(resume(chain)) == {"choose": "exact", **dict.fromkeys(NAMES, "settled")}
    assert added(chain, "beta") == ["ours_beta(2)"]
    holds(chain)


def test_a_rebase_that_squashes_is_read_as_it_is(chain: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(chain, lambda: start(chain))
    for name in NAMES:
        accept(chain, hook=name)
        git(chain, "commit", "--quiet", "--all", f"--fixup={sha(chain, name)}")
    monkeypatch.setenv("GIT_SEQUENCE_EDITOR", "true")
    git(chain, "rebase", "--quiet", "--interactive", "--autosquash", OVERLAY)
    assert "fixup!" not in git(chain, "log", "--format=%s")
    assert outcomes(resume(chain)) == {"choose": "exact", **dict.fromkeys(NAMES, "settled")}
    holds(chain)


def test_a_rebase_under_way_is_ended_first(chain: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(chain, lambda: start(chain))
    monkeypatch.setenv("GIT_SEQUENCE_EDITOR", "sed -i 1s/pick/edit/")
    git(chain, "rebase", "--quiet", "--interactive", OVERLAY)
    said = stopped(chain, lambda: resume(chain))
    assert "a git rebase is under way" in said
    assert "rebase --continue" in said
    git(chain, "rebase", "--continue")
    accept(chain)
    resume(chain)
    holds(chain)


def test_commits_out_of_the_series_order_are_named(chain: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(chain, lambda: start(chain, engine=OLD.replace("first_delta", "new_delta")))
    accept(chain)
    git(chain, "commit", "--quiet", "--all", f"--fixup={sha(chain, 'delta')}")
    monkeypatch.setenv("GIT_SEQUENCE_EDITOR", "sed -i '1{h;d};2{G}'")
    git(chain, "rebase", "--quiet", "--interactive", OVERLAY)
    said = kept(chain, lambda: resume(chain))
    assert "comes before others in the series: choose" in said
    assert "rebase -i" in said


def test_a_change_that_belongs_to_no_hook_for_certain_is_asked_about(chain: Miniature) -> None:
    stopped(chain, lambda: start(chain, text="x = 1\n"))
    accept(chain)
    change(chain, "x = 1\n", "x = 2\n", TEXT)
    said = kept(chain, lambda: resume(chain))
    assert f"{worktree(chain) / TEXT}:1: which hook does this change belong to?" in said
    assert "commit --fixup=COMMIT -- FILE` tells it: " in said
    assert re.search(rf"{sha(chain, 'alpha')}\w* for alpha, {sha(chain, 'beta')}\w* for beta, ", said)
    git(chain, "commit", "--quiet", f"--fixup={sha(chain, 'gamma')}", "--", TEXT)
    resume(chain)
    assert added(chain, "gamma") == ["ours_gamma()", "x = 2"]
    holds(chain)


def test_upstreams_lines_go_to_the_only_hook_that_is_open(chain: Miniature) -> None:
    stopped(chain, lambda: start(chain, engine=OLD.replace("second_beta", "new_beta"), text="x = 1\n"))
    accept(chain)
    change(chain, "x = 1\n", "x = 2\n", TEXT)
    assert outcomes(resume(chain)) == {**dict.fromkeys(("choose", *NAMES), "exact"), "beta": "settled"}
    assert added(chain, "beta") == ["ours_beta()", "x = 2"]
    holds(chain)


def test_a_line_of_a_hook_that_holds_can_be_changed_too(chain: Miniature) -> None:
    stopped(chain, lambda: start(chain, engine=OLD.replace("second_beta", "new_beta")))
    accept(chain)
    change(chain, "ours_delta()", "ours_delta(4)")
    rows = outcomes(resume(chain))
    assert (rows["alpha"], rows["beta"], rows["delta"]) == ("exact", "settled", "settled")
    assert added(chain, "delta") == ["ours_delta(4)"]
    holds(chain)


def test_two_hooks_that_are_open_side_by_side_are_told_apart(chain: Miniature) -> None:
    text = OLD
    for name in NAMES:
        text = hooked(text, name)
    after = hooked(text, "alpha", "    log(alpha)", after="    ours_alpha()\n")
    chain.add_hook("log", {ENGINE: text}, {ENGINE: after})
    stopped(chain, lambda: start(chain))
    assert ">>>>>>> alpha\n<<<<<<< sglang 1.2\n" in read(chain)
    accept(chain)
    change(chain, "ours_alpha()", "ours_alpha(1)")
    resume(chain)
    assert (added(chain, "alpha"), added(chain, "log")) == (["ours_alpha(1)"], ["log(alpha)"])
    holds(chain, "choose", *NAMES, "log")


def test_a_hook_that_uses_lines_of_an_open_one_comes_out_in_the_same_round(chain: Miniature) -> None:
    one, two = (
        OLD,
        OLD.replace("    second_alpha()\n", "    a()\n    b()\n    c()\n    d()\n    e()\n    f()\n    g()\n"),
    )
    three = two.replace("    d()\n", "    d()\n    inner()\n")
    chain.write("patches/series", "choose\n")
    for path in (chain.root / "patches").glob("*/1.0.patch"):
        if path.parent.name != "choose":
            path.unlink()
            path.parent.rmdir()
    chain.add_hook("block", {ENGINE: one}, {ENGINE: two})
    chain.add_hook("inner", {ENGINE: two}, {ENGINE: three})
    rows: list[HunkReport] = []
    stopped(chain, lambda: start(chain, engine=OLD.replace("    third_alpha", "    fourth_alpha")))
    assert hooks_with_commits(chain) == ["choose", "block", "inner"]
    text = read(chain)
    assert text.index("=======") < text.index("inner()") < text.index(">>>>>>> block")
    accept(chain)
    change(chain, "    a()\n", "    a(1)\n")
    rows = resume(chain)
    assert outcomes(rows) == {"choose": "exact", "block": "settled", "inner": "exact"}
    assert added(chain, "inner") == ["inner()"]
    holds(chain, "choose", "block", "inner")


def test_a_hook_that_overlaps_what_is_open_waits_for_it(chain: Miniature) -> None:
    text = OLD
    for name in NAMES:
        text = hooked(text, name)
    over = text.replace("    ours_alpha()\n    second_alpha()\n", "    over()\n")
    chain.add_hook("over", {ENGINE: text}, {ENGINE: over})
    assert "1 more wait for them" in stopped(chain, lambda: start(chain))
    assert hooks_with_commits(chain) == ["choose", *NAMES]
    accept(chain)
    said = stopped(chain, lambda: resume(chain))
    assert "patches/over/1.0.patch" in said
    assert "patches/alpha" not in said
    assert hooks_with_commits(chain) == ["choose", *NAMES, "over"]
    accept(chain)
    rows = outcomes(resume(chain))
    assert rows == {"choose": "exact", **dict.fromkeys(NAMES, "settled"), "over": "settled"}
    assert "over()" in added(chain, "over")
    holds(chain, "choose", *NAMES, "over")


def test_a_hook_that_waited_comes_before_those_after_it(chain: Miniature) -> None:
    one = hooked(OLD, "alpha")
    over = one.replace("    ours_alpha()\n    second_alpha()\n", "    over()\n")
    for name in ("beta", "gamma", "delta"):
        (chain.root / f"patches/{name}/1.0.patch").unlink()
        (chain.root / f"patches/{name}").rmdir()
    chain.write("patches/series", "choose\nalpha\n")
    chain.add_hook("over", {ENGINE: one}, {ENGINE: over})
    text = over
    for name in ("beta", "gamma", "delta"):
        chain.add_hook(name, {ENGINE: text}, {ENGINE: (text := hooked(text, name))})
    stopped(chain, lambda: start(chain))
    assert hooks_with_commits(chain) == ["choose", *NAMES]
    accept(chain)
    stopped(chain, lambda: resume(chain))
    assert hooks_with_commits(chain) == ["choose", "alpha", "over", "beta", "gamma", "delta"]
    for name in ("alpha", "beta", "gamma", "delta"):  # what is open in the same file is none of theirs
        diff = git(chain, "show", "--format=", sha(chain, name))
        assert re.findall(r"(?m)^[-+](?![-+]{2} ).*", diff) == [f"+    ours_{name}()"]
    accept(chain)
    assert outcomes(resume(chain))["over"] == "settled"
    assert added(chain, "gamma") == ["ours_gamma()"]
    holds(chain, "choose", "alpha", "over", "beta", "gamma", "delta")


def test_several_hooks_are_dropped_and_the_others_keep_their_answers(chain: Miniature) -> None:
    stopped(chain, lambda: start(chain))
    accept(chain, hook="alpha")
    accept(chain, hook="delta")
    change(chain, "ours_delta()", "ours_delta(4)")
    assert outcomes(resume(chain, "beta", "g*")) == {
        "choose": "exact", "alpha": "settled", "beta": "dropped", "gamma": "dropped", "delta": "settled"
    }  # fmt: skip
    holds(chain, "choose", "alpha", "delta", engine=settled("    ours_alpha()", "", "", "    ours_delta(4)"))


def test_what_was_said_holds_though_something_is_left_to_settle(chain: Miniature) -> None:
    stopped(chain, lambda: start(chain))
    said = kept(chain, lambda: resume(chain, "beta"))
    assert "hook alpha" in said
    assert "hook beta" not in said
    accept(chain)
    assert outcomes(resume(chain))["beta"] == "dropped"
    holds(chain, "choose", "alpha", "gamma", "delta")


def test_hooks_that_are_settled_as_nothing_are_named_together(chain: Miniature) -> None:
    stopped(chain, lambda: start(chain))
    write(chain, NEW)
    said = kept(chain, lambda: resume(chain))
    assert [name for name in NAMES if f"Hook {name}: nothing in" in said] == [*NAMES]
    assert outcomes(resume(chain, *NAMES))["alpha"] == "dropped"
    holds(chain, "choose")


def test_what_holds_is_not_searched_again(chain: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(chain, lambda: start(chain, engine=OLD.replace("second_beta", "new_beta")))
    monkeypatch.setattr(follow, "relocate", None)
    monkeypatch.setattr(follow, "open_source_tree", None)
    accept(chain)
    assert outcomes(resume(chain)) == {**dict.fromkeys(("choose", *NAMES), "exact"), "beta": "settled"}
    holds(chain)


def test_what_holds_is_not_searched_again_after_the_contract_stopped_it(
    chain: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.write("overlay/sglang/models/ours.py", "from sglang.engine import lost\n")
    stopped(chain, lambda: start(chain, engine=f"# new\n{OLD}"))
    chain.write("overlay/sglang/models/ours.py", "from sglang.engine import alpha\n")
    with monkeypatch.context() as patched:
        patched.setattr(follow, "relocate", None)
        rows = resume(chain)
    assert [(row.hook, row.outcome, row.note) for row in rows][1] == ("alpha", "offset 1", "alpha unchanged")
    holds(chain)


def test_a_variant_that_has_changed_meanwhile_is_followed_anew(chain: Miniature) -> None:
    chain.write("overlay/sglang/models/ours.py", "from sglang.engine import lost\n")
    stopped(chain, lambda: start(chain, engine=OLD))
    chain.write("overlay/sglang/models/ours.py", "from sglang.engine import alpha\n")
    path = chain.root / "patches/delta/1.0.patch"
    path.write_text(path.read_text().replace("ours_delta()", "other_delta()"))
    resume(chain)
    assert added(chain, "delta") == ["other_delta()"]
    holds(chain)


def test_a_contract_that_does_not_hold_keeps_what_is_settled(chain: Miniature) -> None:
    chain.write("overlay/sglang/models/ours.py", "from sglang.engine import lost\n")
    stopped(chain, lambda: start(chain))
    text = settled("    ours_alpha(1)", "    ours_beta()", "    ours_gamma()", "    ours_delta()")
    write(chain, text)
    assert "overlay/sglang/models/ours.py:1: import" in stopped(chain, lambda: resume(chain))
    assert read(chain) == text
    change(chain, "ours_beta()", "ours_beta(2)")
    chain.write("overlay/sglang/models/ours.py", "from sglang.engine import alpha\n")
    resume(chain)
    assert (added(chain, "alpha"), added(chain, "beta")) == (["ours_alpha(1)"], ["ours_beta(2)"])
    holds(chain)


STEPS = [
    (port_worktree, "write_files"),
    (port, "check_out"),
    (port, "prepare"),
    (port, "write_patches"),
    (port, "build_and_verify"),
    (port, "broken_contract"),
    (PortState, "write"),
]


@pytest.mark.parametrize("end", ["continue", "abort"])
@pytest.mark.parametrize(("owner", "name"), STEPS)
def test_whatever_fails_a_person_s_work_is_there(
    chain: Miniature, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, end: str
) -> None:
    before = chain.content()
    stopped(chain, lambda: start(chain))
    text = settled("    ours_alpha(1)", "    ours_beta(2)", "    ours_gamma(3)", "    ours_delta(4)")
    write(chain, text)

    def fail(*words: object, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fail)
        with pytest.raises(KeyboardInterrupt):
            resume(chain)
    assert read(chain) == text
    assert chain.content() == before
    if end == "abort":
        Port(chain.project, chain.cache).abort()
        assert not (chain.root / ".nox/porting").exists()
        return
    change(chain, "ours_delta(4)", "ours_delta(5)")
    resume(chain)
    holds(chain, engine=text.replace("delta(4)", "delta(5)"))


def test_what_is_changed_after_a_kill_is_kept(chain: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    text = OLD
    for name in NAMES:
        text = hooked(text, name)
    chain.add_hook(
        "over", {ENGINE: text}, {ENGINE: text.replace("    ours_alpha()\n    second_alpha()\n", "    x()\n")}
    )
    stopped(chain, lambda: start(chain, text="x = 1\n"))
    accept(chain)

    def fail(*words: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(port_worktree, "write_files", fail)
        with pytest.raises(KeyboardInterrupt):
            resume(chain)
    assert json.loads((chain.root / ".nox/porting/state.json").read_text())["move"] is not None
    change(chain, "ours_gamma()", "ours_gamma(3)")
    said = stopped(chain, lambda: resume(chain))
    assert "ours_gamma(3)" in read(chain)
    assert said


def test_hooks_that_take_files_away_or_change_modes_come_along(chain: Miniature) -> None:
    gone, old, new, mode = (f"sglang/{name}.py" for name in ("gone", "old", "new", "mode"))
    files = {name: f"# {name}\nx = 1\n".encode() for name in (gone, old, mode)}
    for version in ("1.0", "1.1"):
        chain.lock_release(version, upstream_files(version) | files | {ENGINE: OLD.encode()})
    executable = with_mode(files[mode], executable=True)
    chain.write("patches/series", "choose\nalpha\ngone\nrename\nmode\nbeta\ngamma\ndelta\n")
    for name, before, after, renamed in (
        ("gone", {gone: files[gone]}, {gone: None}, {}),
        ("rename", {old: files[old], new: None}, {old: None, new: files[old] + b"y = 2\n"}, {new: old}),
        ("mode", {mode: files[mode]}, {mode: executable}, {}),
    ):
        header = HEADER.replace("Let the overlay choose", f"What {name} does")
        chain.write(f"patches/{name}/1.0.patch", header + make_diff(before, after, renamed))
    content = {**files, ENGINE: NEW.encode()}
    release = chain.publish("1.2", upstream_files("1.2") | content)
    stopped(chain, lambda: Port(chain.project, chain.cache).start("1.2", lambda asked: release))
    assert not (worktree(chain) / gone).exists()
    assert not (worktree(chain) / old).exists()
    assert (worktree(chain) / mode).stat().st_mode & 0o111
    assert git(chain, "status", "--porcelain") == ""
    accept(chain)
    change(chain, "y = 2\n", "y = 3\n", new)
    rows = outcomes(resume(chain))
    assert rows == {
        "choose": "exact", **dict.fromkeys(NAMES, "settled"), "gone": "exact", "rename": "settled", "mode": "exact"
    }  # fmt: skip
    assert added(chain, "rename") == ["y = 3"]
    with zipfile.ZipFile(chain.build("1.2").path) as wheel:
        names = wheel.namelist()
        assert {gone, old}.isdisjoint(names)
        assert wheel.read(new).endswith(b"y = 3\n")
        assert wheel.getinfo(mode).external_attr >> 16 & 0o111
    holds(chain, "choose", "alpha", "gone", "rename", "mode", "beta", "gamma", "delta")


def test_a_hunk_without_a_place_is_named_again_when_the_rest_is_settled(chain: Miniature) -> None:
    text = OLD + "\n\ndef last():\n    one()\n    two()\n    three()\n"
    for version in ("1.0", "1.1"):
        files = {ENGINE: OLD.encode(), TEXT: text.encode()}
        chain.lock_release(version, upstream_files(version) | files)
    chain.add_hook("twice", {TEXT: text}, {TEXT: hooked(hooked(text, "alpha"), "last", "    ours()", "    one()\n")})
    said = stopped(chain, lambda: start(chain, OLD, text=NEW))
    assert "patches/twice/1.0.patch:17: target gone" in said
    accept(chain, TEXT)
    rows = [row for row in resume(chain) if row.hook == "twice"]
    assert [(row.place.rpartition("/")[2], row.outcome) for row in rows] == [
        ("text.py", "settled"),
        ("1.0.patch:17", "left out"),
    ]
    assert "see that what it did is there" in rows[1].note
    assert added(chain, "twice") == ["ours_alpha()"]
