from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
from overlay_tools.downstream.diff import make_diff
from overlay_tools.downstream.queue import PatchQueue, specifier
from overlay_tools.downstream.staging import stage
from overlay_tools.downstream.transaction import undo, write_files, write_patches
from overlay_tools.errors import OverlayError, PatchError
from overlay_tools.patches.apply import apply_series
from overlay_tools.patches.patch_file import load_patch
from overlay_tools.patches.series import load_series
from overlay_tools.wheels.overlay_files import read_package
from packaging.specifiers import SpecifierSet

from unit.conftest import DIFF, ENGINE, HEADER, LOADER, PATCH, Miniature

VERSIONS = ["0.9", "1.0", "1.0.post1", "1.1", "1.2rc1", "1.2"]
FILE = "sglang/engine.py"


def queue_of(mini: Miniature, *versions: str) -> PatchQueue:
    return PatchQueue(load_series(mini.root / "patches"), versions or ["1.0", "1.1"])


def files_of(queue: PatchQueue, mini: Miniature) -> Mapping[str, str]:
    return queue.files((mini.root / "patches" / "series").read_text())


@pytest.mark.parametrize(
    ("covered", "said"),
    [
        (["1.0"], "==1.0"),
        (["1.0.post1"], "==1.0.post1"),
        (["0.9", "1.0"], ">=0.9,<=1.0"),
        (["1.0", "1.0.post1", "1.1"], ">=1.0,<=1.1"),
        (["1.0", "1.1"], ">=1.0,<=1.1,!=1.0.post1"),
        (["0.9", "1.2"], ">=0.9,<=1.2,!=1.0,!=1.0.post1,!=1.1,!=1.2rc1"),
        (["1.1", "1.2rc1"], ">=1.1,<=1.2rc1"),
        (VERSIONS, ">=0.9,<=1.2"),
    ],
)
def test_a_range_holds_for_its_releases_and_no_other(covered: list[str], said: str) -> None:
    assert specifier(covered, VERSIONS) == said
    assert [version for version in VERSIONS if SpecifierSet(said).contains(version, prereleases=True)] == covered


LOCALS = ["1.0", "1.1.dev3+gabc", "1.1", "1.1+gabc", "1.1+gdef", "1.2"]


@pytest.mark.parametrize(
    ("covered", "said"),
    [
        (["1.1"], "==1.1,!=1.1+gabc,!=1.1+gdef"),
        (["1.1+gabc"], "==1.1+gabc"),
        (["1.1.dev3+gabc"], "==1.1.dev3+gabc"),
        (["1.1", "1.1+gabc"], "==1.1,!=1.1+gdef"),
        (["1.0", "1.1.dev3+gabc"], ">=1.0,<=1.1.dev3"),
        (["1.0", "1.1.dev3+gabc", "1.1", "1.1+gdef", "1.2"], ">=1.0,<=1.2,!=1.1+gabc"),
        (["1.0", "1.1.dev3+gabc", "1.2"], ">=1.0,<=1.2,!=1.1,!=1.1+gabc,!=1.1+gdef"),
        (["1.1", "1.1+gabc", "1.1+gdef", "1.2"], ">=1.1,<=1.2"),
        (LOCALS, ">=1.0,<=1.2"),
    ],
)
def test_a_range_tells_local_versions_apart(covered: list[str], said: str) -> None:
    assert specifier(covered, LOCALS) == said
    assert [version for version in LOCALS if SpecifierSet(said).contains(version, prereleases=True)] == covered


@pytest.mark.parametrize("covered", [["1.1+gabc", "1.1+gdef"], ["1.0", "1.1+gabc"], ["1.1+gdef", "1.2"]])
def test_a_range_that_would_leave_out_only_the_version_of_local_ones_is_refused(covered: list[str]) -> None:
    with pytest.raises(PatchError, match=rf"No range holds for {covered[0].replace('+', '.')}") as caught:
        specifier(covered, LOCALS)
    assert "lock only one of them" in caught.value.hint


@pytest.mark.parametrize(
    ("taking", "said"),
    [
        (["1.0", "1.1.dev3+gabc", "1.1", "1.1+gabc", "1.2"], "choose !=1.1+gdef"),
        (["1.1+gabc"], "choose ==1.1+gabc"),
        (["1.1.dev3+gabc", "1.1", "1.1+gabc", "1.1+gdef", "1.2"], "choose >=1.1.dev3"),
        (["1.0", "1.1.dev3+gabc", "1.1"], "choose <=1.1,!=1.1+gabc,!=1.1+gdef"),
    ],
)
def test_the_series_tells_local_versions_apart(mini: Miniature, taking: list[str], said: str) -> None:
    mini.patch.write_text(PATCH.replace("<=1.1", "<=1.2"))
    queue = queue_of(mini, *LOCALS)
    for version in LOCALS:
        if version not in taking:
            queue.drop("choose", version)
    files = files_of(queue, mini)
    assert files["series"] == f"{said}\n"
    hooks = stage(mini.root / "staged", files, mini.root / "patches", LOCALS)
    assert [version for version in LOCALS if hooks[0].variant(version)] == taking


def test_what_has_not_changed_stays_to_the_byte(mini: Miniature) -> None:
    mini.write("patches/series", "# ours\n\nchoose   # why\n")
    mini.patch.write_bytes(PATCH.replace("Applies: >=1.0,<=1.1", "Applies: <2,>=1.0").encode())
    mini.write("overlay/x", "")
    files = files_of(queue_of(mini), mini)
    assert {name: text.encode() for name, text in files.items()} == {
        "choose/1.0.patch": mini.patch.read_bytes(),
        "series": b"# ours\n\nchoose   # why\n",
    }


@pytest.mark.parametrize("applies", [" >=1.0,<=1.1", ">=1.0,<=1.1", " >=1.0,\n <=1.1", " >=1.0,\n\t<=1.1"])
def test_a_release_that_takes_a_variant_widens_its_range_alone(mini: Miniature, applies: str) -> None:
    mini.patch.write_text(PATCH.replace(" >=1.0,<=1.1", applies))
    queue = queue_of(mini, "1.0", "1.1", "1.2")
    queue.take("choose", "1.2", like="1.1")
    assert files_of(queue, mini) == {"choose/1.0.patch": PATCH.replace("<=1.1", "<=1.2"), "series": "choose\n"}


def test_a_variant_is_named_for_the_oldest_release_that_takes_it(mini: Miniature) -> None:
    queue = queue_of(mini, "0.9", "1.0", "1.1")
    queue.take("choose", "0.9", like="1.0")
    assert files_of(queue, mini) == {"choose/0.9.patch": PATCH.replace(">=1.0", ">=0.9"), "series": "choose\n"}


def test_a_new_variant_takes_its_releases_from_the_old_one(mini: Miniature) -> None:
    queue = queue_of(mini, "1.0", "1.1", "1.2")
    queue.take("choose", "1.2", like="1.0")
    patch = load_series(mini.root / "patches")[0].variants[0]
    queue.add_variant("choose", ["1.1"], patch.header, DIFF)
    files = files_of(queue, mini)
    assert files.keys() == {"choose/1.0.patch", "choose/1.1.patch", "series"}
    assert "Applies: >=1.0,<=1.2,!=1.1\n" in files["choose/1.0.patch"]
    assert files["choose/1.1.patch"] == PATCH.replace(">=1.0,<=1.1", "==1.1")
    assert stage(mini.root / "staged", files, mini.root / "patches", ["1.0", "1.1", "1.2"])


def test_a_long_header_is_wrapped_and_says_the_same(mini: Miniature) -> None:
    why = "because " + " ".join(f"word-{n}-of-a-chain https://example.org/some-long/address-{n}" for n in range(20))
    queue = queue_of(mini)
    header = {**load_series(mini.root / "patches")[0].variants[0].header, "Why": why}
    queue.add_variant("choose", ["1.0", "1.1"], header, DIFF)
    text = files_of(queue, mini)["choose/1.0.patch"]
    assert max(map(len, text.splitlines())) <= 120
    path = mini.write("patches/choose/1.0.patch", text)
    assert load_patch(path, "choose").header["Why"] == why
    again = queue_of(mini)
    again.add_variant("choose", ["1.0", "1.1"], load_patch(path, "choose").header, DIFF)
    assert files_of(again, mini)["choose/1.0.patch"] == text


@pytest.mark.parametrize("text", ["choose", "# ours\n\nchoose", "choose\n\n"])
def test_a_series_that_says_the_same_stays_as_it_was(mini: Miniature, text: str) -> None:
    mini.write("patches/series", text)
    assert files_of(queue_of(mini), mini)["series"] == text


def test_a_series_without_a_hook_stays_empty() -> None:
    assert PatchQueue((), ["1.0"]).files("") == {"series": ""}


@pytest.mark.parametrize(
    ("line", "taking", "said"),
    [
        ("choose", ["1.0", "1.1", "1.2"], "choose"),
        ("choose >=1.0  # all", ["1.0", "1.1", "1.2"], "choose >=1.0  # all"),
        ("choose", ["1.0", "1.1"], "choose <=1.1"),
        ("choose # until then", ["1.0", "1.1"], "choose <=1.1  # until then"),
        ("choose <1.2", ["1.0", "1.1"], "choose <1.2"),
        ("choose", ["1.1", "1.2"], "choose >=1.1"),
        ("choose", ["1.1"], "choose >=1.1,<=1.1"),
        ("choose", ["1.0", "1.2"], "choose !=1.1"),
        ("choose", ["0.9", "1.1"], "choose <=1.1,!=1.0"),
    ],
)
def test_the_series_says_where_a_hook_is_due(mini: Miniature, line: str, taking: list[str], said: str) -> None:
    mini.write("patches/series", f"# first\n{line}\n")
    versions = sorted({"1.0", "1.1", "1.2", *taking})
    queue = queue_of(mini, *versions)
    queue.add_variant("choose", taking, load_series(mini.root / "patches")[0].variants[0].header, DIFF)
    for version in versions:
        if version not in taking:
            queue.drop("choose", version)
    files = files_of(queue, mini)
    assert files["series"] == f"# first\n{said}\n"
    (hook,) = stage(mini.root / "staged", files, mini.root / "patches", versions)
    assert [version for version in versions if hook.variant(version)] == taking


def test_a_new_hook_goes_to_the_end_of_the_series(mini: Miniature) -> None:
    queue = queue_of(mini)
    header = dict(load_series(mini.root / "patches")[0].variants[0].header)
    queue.add_variant("more", ["1.1"], header, DIFF)
    files = files_of(queue, mini)
    assert files["series"] == "choose\nmore >=1.1\n"
    assert files["more/1.1.patch"] == PATCH.replace(">=1.0,<=1.1", "==1.1")


def test_a_variant_that_is_no_patch_is_refused_under_the_name_that_it_would_have(mini: Miniature) -> None:
    queue = queue_of(mini)
    header = dict(load_series(mini.root / "patches")[0].variants[0].header)
    queue.add_variant("choose", ["1.1"], header, DIFF.replace("a/sglang", "a/numpy").replace("b/sglang", "b/numpy"))
    with pytest.raises(PatchError) as caught:
        queue.variant("choose", "1.1", mini.root / "patches")
    assert str(caught.value).startswith(str(mini.root / "patches" / "choose"))
    assert "1.1.patch:7: numpy/loader.py is outside" in str(caught.value)
    with pytest.raises(PatchError, match=r"^Hook choose: sglang/loader\.py:7: byte 0xff is not UTF-8\.$"):
        queue.add_variant("choose", ["1.1"], header, DIFF.replace("config.name", "config.n\udcffme"))
    queue.add_variant("choose", ["1.1"], header, DIFF)
    patch = queue.variant("choose", "1.1", mini.root / "patches")
    assert (patch.path, patch.diff) == (mini.root / "patches" / "choose" / "1.1.patch", DIFF)


def test_what_is_staged_is_checked_as_if_it_were_there(mini: Miniature) -> None:
    files = {"series": "choose\n", "choose/1.0.patch": PATCH.replace("--- a/", "index 1234567..89abcde 100644\n--- a/")}
    with pytest.raises(PatchError) as caught:
        stage(mini.root / "staged", files, mini.root / "patches", ["1.0", "1.1"])
    assert str(caught.value) == f"{mini.patch}:8: an index line changes with every release; remove it."
    with pytest.raises(PatchError, match=r"there is no patch in .*/patches/choose"):
        stage(mini.root / "other", {"series": "choose\n"}, mini.root / "patches", ["1.0"])


def test_a_diff_is_the_least_and_names_its_functions() -> None:
    after = ENGINE.replace("    return model\n", "    return ours(model)\n")
    assert make_diff(
        {FILE: ENGINE.encode(), "sglang/same.py": b"x\n"}, {FILE: after.encode(), "sglang/same.py": b"x\n"}
    ) == (
        f"diff --git a/{FILE} b/{FILE}\n--- a/{FILE}\n+++ b/{FILE}\n@@ -31,7 +31,7 @@ load\n"
        "     config = read(path)\n     model = build(config)\n     check(model, strict)\n-    return model\n"
        "+    return ours(model)\n \n \n def unload(model):\n"
    )
    assert make_diff({FILE: b"x\n"}, {FILE: b"x\n"}) == ""


def test_a_hunk_gets_the_context_that_makes_it_fit_once(mini: Miniature) -> None:
    body = "    a = 1\n    b = 2\n    c = 3\n    d = 4\n    e = 5\n    f = 6\n    g = 7\n"
    text = f"def one():\n{body}\n\ndef two():\n{body}"
    head, tail = text[: text.index("def two")], text[text.index("def two") :]
    diff = make_diff({FILE: text.encode()}, {FILE: (head + tail.replace("d = 4", "d = 0")).encode()})
    assert diff.count("\n     ") + diff.count("\n-    ") == 7  # one line more than three does it: it holds the name
    assert "def two" in diff
    # Where less than all up to the beginning of the file would fit twice, it has that.
    twice = "".join(f"    a = {n}\n" for n in range(40)) * 2
    diff = make_diff({FILE: twice.encode()}, {FILE: twice.replace("a = 20", "a = 99", 1).encode()})
    assert diff.count("\n     ") == 40


PAIRS = {
    "hooks apart": (ENGINE, ENGINE.replace("size = 4", "size = 5").replace("return None", "return model")),
    "no line end": (LOADER + "last = 1", LOADER.replace("other", "another") + "last = 1"),
    "carriage returns": (
        LOADER.replace("\n", "\r\n"),
        LOADER.replace("\n", "\r\n").replace("return 1\r", "return 2\r"),
    ),
    "mixed": (LOADER.replace("3\n", "3\r\n"), LOADER.replace("3\n", "4\r\n")),
    "odd separators": ("a\x0c\u2028b\n" + LOADER, "a\x0c\u2028b\n" + LOADER.replace("return 1", "return '\x0c'")),
    "a line that looks like a head": ("index 1234..5678\n" + LOADER, "index 1234..5678\n# ours\n" + LOADER),
    "markers and signs": ("--- a/x\n+++ b/x\n" + LOADER, "--- a/y\n+++ b/x\n" + LOADER),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("file", ["sglang/loader.py", "sglang/übersetzung.txt"])
def test_a_diff_applied_gives_the_file_again(mini: Miniature, name: str, file: str) -> None:
    before, after = (text.encode() for text in PAIRS[name])
    mini.write("patches/choose/1.0.patch", "")
    mini.patch.write_bytes(HEADER.encode() + make_diff({file: before}, {file: after}).encode())
    patch = load_patch(mini.patch, "choose")
    assert patch.diff.encode() == mini.patch.read_bytes()[len(HEADER) :]
    assert apply_series([patch], {file: before}.get, "1.0") == {file: after}


@pytest.mark.parametrize(
    "configuration",
    [
        "[diff]\n\tnoprefix = true\n\tmnemonicPrefix = true\n\talgorithm = patience\n\tcontext = 9\n",
        "[diff]\n\tinterHunkContext = 30\n\tindentHeuristic = false\n\trenames = copies\n\torderFile = absent\n",
        "[core]\n\tabbrev = 40\n\tautocrlf = true\n\tquotePath = true\n[color]\n\tui = always\n\tdiff = always\n",
    ],
)
def test_a_diff_is_the_same_whatever_git_is_told(
    mini: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configuration: str
) -> None:
    before = {FILE: ENGINE.encode(), "sglang/ä.py": LOADER.replace("\n", "\r\n").encode()}
    after = {
        name: data.replace(b"return", b"return  ").replace(b"import os", b"import re") for name, data in before.items()
    }
    plain = make_diff(before, after)
    (tmp_path / "config").write_text(configuration)
    (tmp_path / ".gitconfig").write_text(configuration)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_DIFF_OPTS", "-u9")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    assert make_diff(before, after) == plain
    assert plain.index("sglang/engine.py") < plain.index("sglang/ä.py")


def test_patches_are_written_with_what_goes_with_them(mini: Miniature) -> None:
    mini.write("patches/choose/2.0.patch", "old")
    mini.write("overlay/sglang/gone.py", "")
    before = mini.content()
    files = {"series": "choose\n", "choose/1.0.patch": PATCH.replace("because", "why not")}
    others = {
        "overlay/sglang/gone.py": None,
        "overlay/sglang/new/a.py": b"\xff\r\n",
        "upstream.lock": before["upstream.lock"],
    }
    written = write_patches(mini.root / "patches", files, others)
    assert written == [
        "overlay/sglang/gone.py", "overlay/sglang/new/a.py", "patches/choose/1.0.patch", "patches/choose/2.0.patch",
    ]  # fmt: skip
    after = {
        **before,
        "patches/choose/1.0.patch": files["choose/1.0.patch"].encode(),
        "overlay/sglang/new/a.py": b"\xff\r\n",
    }
    del after["overlay/sglang/gone.py"], after["patches/choose/2.0.patch"]
    assert mini.content() == after
    assert write_patches(mini.root / "patches", files, others) == []
    assert list((mini.root / ".nox").iterdir()) == []


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int, stop: Callable[[], object]) -> None:
    """Do something else before the file of this number, counted from 0, is in its place."""
    left, replace = iter(range(number)), Path.replace

    def replaced(path: Path, target: Path) -> Path:
        if next(left, None) is None:
            monkeypatch.setattr(Path, "replace", replace)
            stop()
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replaced)


NEW = {"series": "# new\nchoose\n", "choose/0.9.patch": PATCH, "more/1.0.patch": PATCH}
BESIDE = {"overlay/sglang/a.py": b"a = 1\n"}


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("kill", [False, True])
def test_a_write_that_is_stopped_leaves_what_was_there(
    mini: Miniature, monkeypatch: pytest.MonkeyPatch, number: int, kill: bool
) -> None:
    mini.write("patches/choose/2.0.patch", "old")
    before, paths = mini.content(), set((mini.root / "patches").rglob("*"))
    if kill:
        child = os.fork()
        if child == 0:
            stop_at(monkeypatch, number, lambda: os._exit(9))
            write_patches(mini.root / "patches", NEW, BESIDE)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        undo(mini.root)
    else:

        def interrupt() -> None:
            raise KeyboardInterrupt

        stop_at(monkeypatch, number, interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_patches(mini.root / "patches", NEW, BESIDE)
    assert mini.content() == before
    assert set((mini.root / "patches").rglob("*")) == paths
    undo(mini.root)  # nothing is left to put back
    write_patches(mini.root / "patches", NEW, BESIDE)
    undo(mini.root)
    gone = {"patches/choose/1.0.patch", "patches/choose/2.0.patch"}
    new = {"patches/choose/0.9.patch", "patches/more/1.0.patch", "overlay/sglang/a.py"}
    assert mini.content().keys() == before.keys() - gone | new


def test_nothing_is_built_of_what_a_kill_has_left(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    child = os.fork()
    if child == 0:
        stop_at(monkeypatch, 3, lambda: os._exit(9))
        write_patches(mini.root / "patches", NEW, BESIDE)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    for read in (mini.build, partial(read_package, mini.project, "sglang", None)):  # the second, as for the plugin
        with pytest.raises(OverlayError, match=f"{mini.root} is half written") as caught:
            read()
        assert "put back" in caught.value.hint
    undo(mini.root)
    mini.build()


def test_what_a_person_changed_after_a_kill_is_left(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    mini.write("patches/choose/2.0.patch", "old")
    before = mini.content()
    child = os.fork()
    if child == 0:
        stop_at(monkeypatch, 4, lambda: os._exit(9))  # the note is the first file
        write_patches(mini.root / "patches", NEW, BESIDE)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert mini.content() != before
    mini.write("overlay/sglang/a.py", "a = 2\n")  # written by the run, and then by a person
    mini.write("patches/choose/0.9.patch", "mine\n")
    with pytest.raises(OverlayError, match=r"a\.py has changed since a run") as caught:
        undo(mini.root)
    assert len(caught.value.problems) == 2
    assert caught.value.hint
    kept = {"overlay/sglang/a.py": b"a = 2\n", "patches/choose/0.9.patch": b"mine\n"}
    assert mini.content() == before | kept
    undo(mini.root)  # it is said once
    assert mini.content() == before | kept


def test_a_file_is_written_whole(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, data: bytes) -> int:
        with path.open("wb") as stream:
            stream.write(data[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space left"):
        write_files(mini.root, {"patches/series": b"another\n"})
    assert (mini.root / "patches" / "series").read_text() == "choose\n"


@pytest.mark.parametrize("note", ["", "\0\0", "{", "[]", '{"patches/series": null}'])
def test_a_damaged_note_of_what_was_written_is_named(mini: Miniature, note: str) -> None:
    before = mini.content()
    mini.write(".nox/undo.json", note)
    with pytest.raises(OverlayError, match=r"undo.json, which tells what .* is damaged") as caught:
        undo(mini.root)
    assert "remove this file" in caught.value.hint
    assert mini.content() == before


@pytest.mark.parametrize("stopped", [True, False])
def test_a_file_takes_the_place_of_a_folder(mini: Miniature, monkeypatch: pytest.MonkeyPatch, stopped: bool) -> None:
    mini.write("overlay/sglang/more/a.py", "a = 1\n")
    before = mini.content()
    others = {"overlay/sglang/more": b"more\n", "overlay/sglang/more/a.py": None}
    if stopped:

        def fail() -> None:
            raise KeyboardInterrupt

        stop_at(monkeypatch, 3, fail)
        with pytest.raises(KeyboardInterrupt):
            write_patches(mini.root / "patches", NEW, others)
        assert mini.content() == before
    else:
        write_patches(mini.root / "patches", NEW, others)
        assert (mini.root / "overlay/sglang/more").read_bytes() == b"more\n"
