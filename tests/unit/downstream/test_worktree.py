from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from overlay_tools.archive.mode import Executable
from overlay_tools.downstream.worktree import OVERLAY, UPSTREAM, Worktree, find_markers
from overlay_tools.errors import ToolError, WheelError, WorktreeError
from overlay_tools.patches.series import load_series

from unit.conftest import LOADER, Miniature, upstream_files

LOADER_FILE, TEXT_FILE = "sglang/loader.py", "sglang/übersetzung.txt"


@pytest.fixture
def tree(mini: Miniature) -> Worktree:
    wheel = mini.releases["1.0"].wheels[0]
    overlay = {"sglang/models/ours.py": b"OURS = 1\r\n"}
    return Worktree.create(mini.root / "a folder" / "wörk", mini.cache / wheel.sha256 / wheel.name, overlay)


def commit(tree: Worktree, message: str = "more", **files: str | None) -> str:
    for name, text in files.items():
        path = tree.folder / f"sglang/{name}.py"
        path.unlink() if text is None else path.write_text(text)
    tree.git("add", "--all")
    tree.git(
        "-c", "user.name=me", "-c", "user.email=me@here", "commit", "--quiet", "--allow-empty", f"--message={message}"
    )
    return tree.git("rev-parse", "HEAD").strip()


def test_it_holds_upstreams_files_then_the_overlays(tree: Worktree) -> None:
    files = upstream_files("1.0")
    assert tree.names(UPSTREAM) == {*files, "sglang-1.0.dist-info/RECORD"}
    assert tree.names(OVERLAY) - tree.names(UPSTREAM) == {"sglang/models/ours.py"}
    files["sglang/native.so"] = Executable(files["sglang/native.so"])
    assert {name: tree.read("HEAD", name) for name in files} == files
    assert {name: tree.read_working(name) for name in files} == files
    assert tree.read("HEAD", "sglang/models/ours.py") == b"OURS = 1\r\n"
    assert (tree.commits(), tree.uncommitted()) == ([], [])
    assert tree.read("HEAD", "sglang/absent.py") is None
    assert [path.name for path in tree.folder.parent.iterdir()] == ["wörk"]


def test_it_runs_from_where_it_is_and_leaves_no_trace(tree: Worktree) -> None:
    env = {**os.environ, "PYTHONPATH": str(tree.folder), "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run([sys.executable, "-c", "import sglang.loader as it; it.last()"], env=env, check=True)
    assert list(tree.folder.rglob("__pycache__"))
    assert tree.uncommitted() == []


def test_one_that_was_broken_off_is_made_anew(mini: Miniature, tree: Worktree, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = mini.releases["1.1"].wheels[0]
    base, folder = mini.cache / wheel.sha256 / wheel.name, mini.root / "other"

    def broken_off(tree: Worktree, files: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Worktree, "write", broken_off)
        with pytest.raises(KeyboardInterrupt):
            Worktree.create(folder, base, {})
    assert not folder.exists()
    assert Worktree.create(folder, base, {}).names("HEAD") == {*upstream_files("1.1"), "sglang-1.1.dist-info/RECORD"}


def test_a_commit_says_what_it_does(tree: Worktree) -> None:
    commit(tree, "One\n\nbecause\nof this\n\nHook: a\nRemove-When: never,\n ever", loader=LOADER + "x = 1\n")
    (tree.folder / TEXT_FILE).write_text("schöner\n")
    (tree.folder / "sglang" / "with blank.txt").write_text("x\n")
    commit(tree, "Two", loader=None, loader2=LOADER + "x = 1\n")
    one, two = tree.commits()
    assert (one.subject, one.body, one.parents) == ("One", "because of this", 1)
    assert one.trailers == {"Hook": "a", "Remove-When": "never, ever"}
    assert one.changed == {LOADER_FILE: "M"}
    assert (two.subject, two.body, two.trailers) == ("Two", "", {})
    assert two.changed == {LOADER_FILE: "D", TEXT_FILE: "M", "sglang/with blank.txt": "A", "sglang/loader2.py": "A"}
    assert tree.read(one.sha, LOADER_FILE) == (LOADER + "x = 1\n").encode()
    assert tree.read(f"{one.sha}~", LOADER_FILE) == LOADER.encode()


def test_a_commit_says_what_it_renames(tree: Worktree) -> None:
    commit(tree, "Renamed", loader=None, loader2=LOADER + "x = 1\n", new="x = 1\n")
    commit(tree, "Another", loader2=None, other="nothing like it\n")
    one, two = tree.commits()
    assert (one.renamed, two.renamed) == ({"sglang/loader2.py": LOADER_FILE}, {})


def test_a_hook_that_takes_files_away_is_committed_whole(mini: Miniature, tree: Worktree) -> None:
    patch = load_series(mini.root / "patches")[0].variants[0]
    files = {LOADER_FILE: None, "sglang/[new].py": Executable(LOADER.encode()), TEXT_FILE: Executable(b"x")}
    tree.commit_hook(patch, files)
    assert (tree.uncommitted(), {name: tree.read("HEAD", name) for name in files}) == ([], files)


def test_a_merge_has_two_parents(tree: Worktree) -> None:
    tree.git("checkout", "--quiet", "-b", "side")
    commit(tree, "Side", loader=LOADER + "x = 1\n")
    tree.git("checkout", "--quiet", "main")
    commit(tree, "Main")
    tree.git("-c", "user.name=me", "-c", "user.email=me@here", "merge", "--quiet", "--no-edit", "side")
    assert sorted(commit.parents for commit in tree.commits()) == [1, 1, 2]


def test_commits_that_do_not_stand_on_the_overlays_are_refused(tree: Worktree) -> None:
    tree.git("checkout", "--quiet", "--orphan", "other")
    commit(tree, "Alone")
    with pytest.raises(WorktreeError, match="is not among those of HEAD") as caught:
        tree.commits()
    assert "rebase overlay" in caught.value.hint


@pytest.mark.parametrize("command", ["cherry-pick", "revert"])
def test_what_git_has_not_done_yet_of_several_commits_is_noticed(tree: Worktree, command: str) -> None:
    tree.git("config", "user.name", "me")
    tree.git("config", "user.email", "me@here")
    tree.git("checkout", "--quiet", "-b", "side")
    for number in range(2):
        commit(tree, "Side", loader=f"x = {number}\n")
    tree.git("checkout", "--quiet", "main")
    commit(tree, "Main", loader="x = 2\n")
    with pytest.raises(ToolError):
        tree.git(command, f"{OVERLAY}..side")
    commit(tree, "Settled", loader="x = 3\n")  # CHERRY_PICK_HEAD and REVERT_HEAD are gone
    with pytest.raises(WorktreeError, match=rf"a git {command} is under way\.") as caught:
        tree.check_not_under_way(WorktreeError, "then export again")
    assert f"{command} --continue` ends it" in caught.value.hint


def test_mails_that_git_has_stopped_in_are_no_rebase(tree: Worktree) -> None:
    commit(tree, "One", loader="x = 1\n")
    mail = tree.git("format-patch", "--stdout", "-1")
    tree.git("reset", "--quiet", "--hard", "HEAD~")
    commit(tree, "Main", loader="x = 2\n")
    with pytest.raises(ToolError):
        tree.git("-c", "user.name=me", "-c", "user.email=me@here", "am", stdin=mail)
    with pytest.raises(WorktreeError, match=r"a git am is under way\.") as caught:
        tree.check_not_under_way(WorktreeError, "then export again")
    assert "am --continue` ends it; then export again." in caught.value.hint


def test_what_is_not_committed_is_named(tree: Worktree) -> None:
    (tree.folder / TEXT_FILE).write_text("schöner\n")
    (tree.folder / "sglang" / "with blank.py").write_text("x = 1\n")
    tree.git("mv", LOADER_FILE, "sglang/loader2.py")
    assert sorted(tree.uncommitted()) == [LOADER_FILE, "sglang/loader2.py", "sglang/with blank.py", TEXT_FILE]


@pytest.mark.parametrize("line", ["<<<<<<< sglang 1.1", "||||||| sglang 1.0", "=======", ">>>>>>> choose", "<<<<<<<"])
def test_markers_that_are_left_are_named(tree: Worktree, line: str) -> None:
    content = f"schön\n\n{line}\n{line}\n".encode()
    assert find_markers(content, tree.read("HEAD", TEXT_FILE)) == [3, 4]


def test_what_only_looks_like_a_marker_is_none(tree: Worktree) -> None:
    text = 'TEXT = """\n=======\nTitle\n=======\n"""\n'
    commit(tree, "a text of upstream's", loader=text)
    content = f"{text}# <<<<<<< x\n<<<<<<<<\n >>>>>>> x\n========\n".encode()
    assert find_markers(content, tree.read("HEAD", LOADER_FILE)) == []
    assert find_markers(b"\xff\n<<<<<<< x\r\n", tree.read("HEAD", TEXT_FILE)) == [2]


def test_a_hooks_header_is_its_message_and_back(mini: Miniature, tree: Worktree) -> None:
    patch = load_series(mini.root / "patches")[0].variants[0]
    (tree.folder / "sglang" / "new.py").write_text("x = 1\n")
    tree.commit_hook(patch, {LOADER_FILE: (LOADER + "x = 1\n").encode()})
    (made,) = tree.commits()
    assert (made.subject, made.body) == ("Let the overlay choose", "because")
    assert made.trailers == {"Hook": "choose", "Forwarded": "no: ours alone", "Remove-When": "never"}
    assert made.changed == {LOADER_FILE: "M"}
    assert tree.uncommitted() == ["sglang/new.py"]


@pytest.mark.parametrize(
    ("message", "read"),
    [
        ("Subject", ("Subject", "", {})),
        ("Subject\n\nNote: this is a body of one line", ("Subject", "", {"Note": "this is a body of one line"})),
        ("Subject\n\nwhy\n\nhow: so\nand more", ("Subject", "why how: so and more", {})),
        (
            "Subject\nWhy\n\nHook: a\nForwarded: https://x.org/a:b",
            ("Subject", "Why", {"Hook": "a", "Forwarded": "https://x.org/a:b"}),
        ),
        ("Subject\n\nwhy\n\n\nHook: a\n folded\n\tagain\n", ("Subject", "why", {"Hook": "a folded again"})),
        ("Subject\n\nwhy\n\nhook: a\nREMOVE-WHEN : b", ("Subject", "why", {"Hook": "a", "Remove-When": "b"})),
        (
            "Subject\n\nwhy\n---\nmore\n\nHook: a\n(cherry picked from commit 1234567)\nSigned-off-by: me <me@here>",
            ("Subject", "why --- more", {"Hook": "a", "Signed-off-by": "me <me@here>"}),
        ),
        (
            "Subject\n\nwhy\n\nas said there\nHook: a\nSigned-off-by: me <me@here>",
            ("Subject", "why", {"Hook": "a", "Signed-off-by": "me <me@here>"}),
        ),
    ],
)
def test_a_message_is_read_as_git_reads_it(tree: Worktree, message: str, read: tuple[str, str, dict[str, str]]) -> None:
    commit(tree, message)
    (made,) = tree.commits()
    assert (made.subject, made.body, made.trailers) == read


def test_the_users_configuration_and_a_hook_of_gits_do_not_matter(
    mini: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(
        "[core]\n\tautocrlf = true\n[commit]\n\tgpgSign = true\n[status]\n\trelativePaths = true\n"
    )
    for name, value in {
        "GIT_CONFIG_GLOBAL": tmp_path / "config",
        "GIT_DIR": tmp_path / "x",
        "GIT_INDEX_FILE": tmp_path,
    }.items():
        monkeypatch.setenv(name, str(value))
    wheel = mini.releases["1.0"].wheels[0]
    tree = Worktree.create(tmp_path / "tree", mini.cache / wheel.sha256 / wheel.name, {"sglang/a.py": b"a = 1\r\n"})
    assert tree.read("HEAD", "sglang/a.py") == b"a = 1\r\n"
    for name in ("GIT_DIR", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name)
    # Nor to what a person commits there.
    (tree.folder / "sglang" / "b.py").write_bytes(b"b = 1\r\n")
    who = ["-c", "user.name=me", "-c", "user.email=me@here"]
    for words in (["add", "--all"], [*who, "commit", "--no-gpg-sign", "--quiet", "--message=x"]):
        subprocess.run(["git", *words], cwd=tree.folder, check=True)
    assert tree.read("HEAD", "sglang/b.py") == b"b = 1\r\n"


def test_a_git_that_fails_is_shown(tree: Worktree) -> None:
    with pytest.raises(ToolError, match=r"git checkout nowhere failed:\n.*nowhere") as caught:
        tree.git("checkout", "nowhere")
    assert "remove it, and begin anew" in caught.value.hint


def hostile(mini: Miniature, files: Mapping[str, str]) -> Path:
    """Return a wheel of release 1.2 that holds more files than upstream's would, locked."""
    return mini.lock_release("1.2", {**upstream_files("1.2"), **{name: text.encode() for name, text in files.items()}})


def run_as_user(tree: Worktree, config: str, tmp_path: Path, *commands: Sequence[str]) -> None:
    """Run git commands in a worktree as a person whose configuration is `config`."""
    (tmp_path / "gitconfig").write_text(f"[user]\n\tname = me\n\temail = me@here\n{config}")
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    for words in commands:
        subprocess.run(
            ["git", *words], cwd=tree.folder, check=True, stdout=subprocess.DEVNULL,
            env={**env, "GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig")},
        )  # fmt: skip


def test_no_attribute_of_a_wheels_file_has_git_run_a_program(
    mini: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    evil = f"sh -c 'echo %P >> {ran}; cat'"
    config = "".join(
        f'[{kind} "evil"]\n' + "".join(f'\t{key} = "{evil}"\n' for key in keys)
        for kind, keys in {"filter": ["clean", "smudge"], "diff": ["command", "textconv"], "merge": ["driver"]}.items()
    )  # what a person may well have: git-lfs is such a filter
    (tmp_path / "attributes").write_text("* filter=evil eol=crlf diff=evil merge=evil\n")
    config += f"[core]\n\tautocrlf = true\n\tattributesFile = {tmp_path / 'attributes'}\n"
    (tmp_path / "gitconfig").write_text(config)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    wheel = hostile(mini, {"sglang/.gitattributes": "* filter=evil text eol=crlf ident diff=evil merge=evil\n"})
    tree = Worktree.create(tmp_path / "tree", wheel, {"sglang/ours.py": b"x = 1\n"})
    assert tree.read("HEAD", "sglang/.gitattributes")
    commit(tree, "One", loader=LOADER + "x = 1\n")
    run_as_user(tree, config, tmp_path, ["checkout", "--quiet", "-b", "side", "HEAD~"])
    commit(tree, "Two", loader="x = 0\n" + LOADER)
    commands = [
        ["merge", "--quiet", "--no-edit", "main"],
        ["diff", "--ext-diff", "--textconv", "HEAD~"],
        ["log", "-p", "--textconv"],
        ["checkout", "--quiet", "main"],
        ["add", "--all", "--renormalize"],
    ]
    run_as_user(tree, config, tmp_path, *commands)
    assert tree.uncommitted() == []
    assert not ran.exists()
    assert tree.read("side", LOADER_FILE) == ("x = 0\n" + LOADER + "x = 1\n").encode()
    assert (tree.folder / LOADER_FILE).read_bytes() == (LOADER + "x = 1\n").encode()


def test_a_wheel_that_brings_its_own_repository_is_not_unpacked(mini: Miniature, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for name in (".git/config", "sglang/.git/config"):
        wheel = hostile(mini, {name: f'[core]\n\tfsmonitor = "touch {ran}"\n'})
        with pytest.raises(WheelError, match="part of a git repository"):
            Worktree.create(tmp_path / "tree", wheel, {})
        assert list(tmp_path.glob("*tree*")) == []
        assert not ran.exists()


def test_no_gitignore_of_a_wheels_hides_what_a_person_has_made(mini: Miniature, tmp_path: Path) -> None:
    wheel = hostile(mini, {"sglang/.gitignore": "*\n", "sglang/kept.py": "x = 1\n"})
    tree = Worktree.create(tmp_path / "tree", wheel, {"sglang/ours.py": b"x = 1\n"})
    assert {"sglang/kept.py", "sglang/ours.py", "sglang/.gitignore"} <= tree.names("HEAD")
    (tree.folder / "sglang" / "kept.py").rename(tree.folder / "sglang" / "moved.py")
    (tree.folder / "sglang" / "__pycache__").mkdir()
    (tree.folder / "sglang" / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert sorted(tree.uncommitted()) == ["sglang/kept.py", "sglang/moved.py"]
    assert tree.renamed_since_head() == {"sglang/moved.py": "sglang/kept.py"}
    (tree.folder / ".git" / "info" / "exclude").write_text("moved.py\n")
    tree.git("reset", "--quiet")
    assert sorted(tree.uncommitted()) == ["sglang/__pycache__/x.pyc", "sglang/kept.py"]


def test_two_files_that_a_disk_takes_for_one_are_named(
    mini: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exists(path: Path) -> bool:
        return path.parent.is_dir() and path.name.casefold() in {one.name.casefold() for one in path.parent.iterdir()}

    wheel = hostile(mini, {"sglang/Loader.py": "x = 1\n"})
    tree = Worktree.create(tmp_path / "both", wheel, {})
    assert tree.read("HEAD", "sglang/Loader.py") == b"x = 1\n"
    monkeypatch.setattr(Path, "exists", exists)
    with pytest.raises(WheelError, match=r"takes sglang/Loader\.py for another file of the wheel"):
        Worktree.create(tmp_path / "one", wheel, {})


def test_a_damaged_wheel_is_not_unpacked(mini: Miniature, tmp_path: Path) -> None:
    wheel = hostile(mini, {"sglang/more.py": "x = 1\n"})
    data = wheel.read_bytes()
    good = zlib.crc32(b"x = 1\n").to_bytes(4, "little")
    wheel.write_bytes(data.replace(good, bytes(4)))
    with pytest.raises(WheelError, match=r"sglang/more\.py is damaged"):
        Worktree.create(tmp_path / "tree", wheel, {})
    assert list(tmp_path.glob("*tree*")) == []
