"""Worktrees and exports of files of overlay/ that some releases take, and others do not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from overlay_tools import cli
from overlay_tools.downstream.edit import edit, worktree_of
from overlay_tools.downstream.export import export
from overlay_tools.errors import OverlayError, WorktreeError
from packaging.specifiers import SpecifierSet

from unit.conftest import Miniature, upstream_files

OLD, NEW = "sglang/models/old.py", "sglang/models/new.py"


@pytest.fixture
def mini(mini_here: Miniature) -> Miniature:
    """Return a project with a file for 1.0 alone, where upstream has one of that name in 1.1."""
    mini = mini_here
    mini.write(f"overlay/{OLD}", "OLD = 'ours'\n")
    mini.lock_release("1.1", {**upstream_files("1.1"), OLD: b"OLD = 'upstream'\n"})
    mini.limit({OLD: "<1.1"})
    return mini


def commit(mini: Miniature, version: str, **files: str | None) -> Path:
    """Open a release, and commit files of sglang/models, None to remove one; return the worktree's folder."""
    folder = edit(mini.project, mini.cache, version, discard=True).folder
    for name, text in files.items():
        path = folder / f"sglang/models/{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.unlink() if text is None else path.write_text(text)
    for words in (["add", "--all"], ["-c", "user.name=x", "-c", "user.email=x", "commit", "--quiet", "--message=x"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def exported(mini: Miniature, version: str, wanted: str | None = None) -> tuple[list[str], list[str]]:
    """Export; return what was written, and what had to be agreed to."""
    asked: list[str] = []
    releases = None if wanted is None else SpecifierSet(wanted)
    return export(mini.project, mini.cache, version, wanted=releases, agree=noting(asked, answer=True)), asked


def noting(asked: list[str], *, answer: bool) -> Callable[[str], bool]:
    def agree(what: str) -> bool:
        asked.append(what)
        return answer

    return agree


def files(mini: Miniature) -> str:
    return (mini.root / "pyproject.toml").read_text().partition("[tool.sglang-overlay.files]\n")[2]


def test_a_worktree_has_the_files_of_its_release(mini: Miniature) -> None:
    contents = {v: (edit(mini.project, mini.cache, v, discard=False).folder / OLD).read_text() for v in ("1.0", "1.1")}
    assert contents == {"1.0": "OLD = 'ours'\n", "1.1": "OLD = 'upstream'\n"}


def test_a_file_of_other_releases_stays_as_it_is(mini: Miniature) -> None:
    commit(mini, "1.1", ours="OURS = 2\n")
    assert exported(mini, "1.1") == (["overlay/sglang/models/ours.py"], [])
    assert (mini.root / "overlay" / OLD).read_text() == "OLD = 'ours'\n"
    assert files(mini) == f'"{OLD}" = "<1.1"\n'


def test_a_change_to_upstreams_file_of_that_name_is_a_hook(mini: Miniature) -> None:
    commit(mini, "1.1", old="OLD = 'hooked'\n")
    with pytest.raises(WorktreeError, match=r"would be the new hook"):
        exported(mini, "1.1")


def test_a_new_file_goes_to_every_release(mini: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    commit(mini, "1.0", new="from sglang.loader import last\n")
    assert exported(mini, "1.0") == ([f"overlay/{NEW}"], [])
    assert f"  overlay/{NEW}  1.0 to 1.1  is added\n" in capsys.readouterr().out
    assert files(mini) == f'"{OLD}" = "<1.1"\n'


def test_a_new_file_goes_to_the_releases_that_are_asked_for(
    mini: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(mini, "1.0", new="NEW = 1\n")
    assert exported(mini, "1.0", "<1.1") == ([f"overlay/{NEW}", "pyproject.toml"], [])
    shown = capsys.readouterr().out
    assert f"  overlay/{NEW}  1.0       is added\n" in shown
    assert f"  overlay/{NEW}  1.1       not added: outside the range of releases\n" in shown
    assert files(mini) == f'"{OLD}" = "<1.1"\n"{NEW}" = "<1.1"\n'
    assert (NEW in mini.build("1.0").added, NEW in mini.build("1.1").added) == (True, False)
    assert exported(mini, "1.0") == ([], [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("from sglang.models.old import OLD, more\n", "import sglang.models.old.more: sglang.models.old has no `more`"),
        ("from sglang.nowhere import x\n", "import sglang.nowhere.x: there is no module sglang.nowhere"),
    ],
)
def test_what_a_new_file_needs_and_a_release_lacks_is_said_before_anything_is_written(
    mini: Miniature, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    mini.write(f"overlay/{OLD}", "OLD = more = 'ours'\nfrom sglang import nowhere\n")
    mini.lock_release("1.0", {**upstream_files("1.0"), "sglang/nowhere.py": b"x = 1\n"})
    commit(mini, "1.0", new=text)
    before = mini.content()
    asked: list[str] = []
    with pytest.raises(WorktreeError, match="Nothing was written"):
        export(mini.project, mini.cache, "1.0", agree=noting(asked, answer=False))
    assert mini.content() == before
    assert asked == [f"overlay/{NEW} would go to releases that it does not fit"]
    assert f"  overlay/{NEW}  1.0       is added\n  overlay/{NEW}  1.1       {said}\n" in capsys.readouterr().out
    assert exported(mini, "1.0", "<1.1") == ([f"overlay/{NEW}", "pyproject.toml"], [])


def test_a_release_that_has_a_file_of_this_name_is_said(mini: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    mini.lock_release("1.1", {**upstream_files("1.1"), OLD: b"", NEW: b""})
    commit(mini, "1.0", new="NEW = 1\n")
    assert cli.main(["export"]) == 1
    said = capsys.readouterr()
    assert f"overlay/{NEW}  1.1       upstream has a file of this name, so no wheel can be built\n" in said.out
    assert f"Nothing was written: overlay/{NEW} would go to releases that it does not fit, and" in said.err
    assert not (mini.root / "overlay" / NEW).exists()
    assert cli.main(["export", "--releases", "==1.0"]) == 0
    mini.build("1.0")
    mini.build("1.1")


def test_a_change_is_asked_about_where_it_breaks_what_held(mini: Miniature) -> None:
    mini.write("overlay/sglang/models/ours.py", "from sglang.nowhere import x\n")
    commit(mini, "1.0", ours="from sglang.nowhere import x\n\nOURS = 2\n")
    assert exported(mini, "1.0") == (["overlay/sglang/models/ours.py"], [])
    commit(mini, "1.0", ours="from sglang.nowhere import x, y\n\nOURS = 2\n")
    assert exported(mini, "1.0")[1] == ["overlay/sglang/models/ours.py would go to releases that it does not fit"]


def test_the_range_of_a_file_that_is_removed_goes_too(mini: Miniature) -> None:
    commit(mini, "1.0", old=None)
    assert exported(mini, "1.0") == ([f"overlay/{OLD}", "pyproject.toml"], [])
    assert files(mini) == ""
    mini.build("1.1")


def test_a_file_that_is_removed_is_said_with_the_releases_that_took_it(
    mini: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(mini, "1.0", old=None, ours=None)
    assert exported(mini, "1.0")[1] == []
    shown = capsys.readouterr().out
    assert f"  overlay/{OLD}   1.0         is removed\n" in shown
    assert "  overlay/sglang/models/ours.py  1.0 to 1.1  is removed\n" in shown


def test_what_needs_a_file_that_is_removed_is_asked_about(mini: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    user = "overlay/sglang/models/user.py"
    mini.write(user, "from sglang.models.ours import OURS\n")
    commit(mini, "1.0", ours=None)
    before = mini.content()
    asked: list[str] = []
    with pytest.raises(WorktreeError, match="Nothing was written"):
        export(mini.project, mini.cache, "1.0", agree=noting(asked, answer=False))
    assert mini.content() == before
    assert asked == [f"{user} would go to releases that it does not fit"]
    problem = "import sglang.models.ours.OURS: there is no module sglang.models.ours"
    assert f"  {user}  1.0 to 1.1  {problem}\n" in capsys.readouterr().out


def test_a_row_of_a_model_that_is_removed_is_asked_about(mini: Miniature) -> None:
    row = "overlay/sglang/srt/overlay_models/ours.py"
    mini.write(row, 'ROW = OverlayModel(model="sglang.models.ours:Ours")\n')
    mini.write("overlay/sglang/models/ours.py", "class Ours:\n    pass\n")
    commit(mini, "1.0", ours=None)
    assert exported(mini, "1.0")[1] == [f"{row} would go to releases that it does not fit"]


@pytest.mark.parametrize(
    ("version", "ranges", "wanted", "said"),
    [
        ("1.1", {OLD: "<1.1", "sglang/models/ne*": "<1.1", }, None,
         f"pyproject.toml:9: {NEW} goes to <1.1 alone, not to 1.1."),
        ("1.1", {OLD: "<1.1"}, "<1.1", f"overlay/{NEW} is new in sglang 1.1, which is outside --releases."),
    ],
)  # fmt: skip
def test_a_file_that_would_not_go_to_the_release_of_its_worktree_is_refused(
    mini: Miniature, version: str, ranges: dict[str, str], wanted: str | None, said: str
) -> None:
    mini.write("overlay/sglang/models/ner.py", "")
    mini.limit(ranges)
    commit(mini, version, new="NEW = 1\n")
    before = mini.content()
    with pytest.raises(OverlayError) as caught:
        exported(mini, version, wanted)
    assert said in str(caught.value)
    assert caught.value.hint
    assert mini.content() == before


def test_a_file_that_is_there_for_other_releases_is_not_overwritten(mini: Miniature) -> None:
    mini.lock_release("1.1")
    commit(mini, "1.1", old="OLD = 'another'\n")
    with pytest.raises(WorktreeError, match=r"old\.py is there for other releases than 1\.1"):
        exported(mini, "1.1")
    assert worktree_of(mini.project, "1.1").folder.exists()
    assert (mini.root / "overlay" / OLD).read_text() == "OLD = 'ours'\n"


def test_the_line_ends_of_the_settings_stay(mini: Miniature) -> None:
    before = (mini.root / "pyproject.toml").read_bytes().replace(b"\n", b"\r\n")
    (mini.root / "pyproject.toml").write_bytes(before)
    commit(mini, "1.0", new="NEW = 1\n")
    assert exported(mini, "1.0", "<1.1") == ([f"overlay/{NEW}", "pyproject.toml"], [])
    after = (mini.root / "pyproject.toml").read_bytes()
    assert after.startswith(before.rstrip())
    assert after.count(b"\n") == after.count(b"\r\n")
