from __future__ import annotations

import zipfile
from collections.abc import Callable

import pytest
from overlay_tools.errors import PatchError
from overlay_tools.patches.lint import find_warnings, lint
from overlay_tools.patches.model import source_of, target_of
from overlay_tools.patches.series import load_series

from unit.conftest import DIFF, HEADER, PATCH, Miniature

REPOSITORY = "sglang/.git/config"
FILE, NEW, BLOB = "sglang/loader.py", "sglang/new.py", "0123456789abcdef0123456789abcdef01234567"
HEADLESS = DIFF.partition("\n")[2]
ENGINE_DIFF = DIFF.replace("loader", "engine")
MODE = "old mode 100644\nnew mode 100755\n"
DELETION = f"deleted file mode 100644\nindex {BLOB}..{'0' * 40}\n"
RENAME = f"rename from {FILE}\nrename to {NEW}\n"
SAME = f"{RENAME}index {BLOB}..{BLOB}\n"


def whole(lines: str, target: str = FILE) -> str:
    """Return a patch that does something to a whole file."""
    return f"{HEADER}diff --git a/{FILE} b/{target}\n{lines}"


def faults_of(mini: Miniature) -> str:
    with pytest.raises(PatchError) as caught:
        load_series(mini.root / "patches")
    assert caught.value.hint
    return str(caught.value)


def lint_of(mini: Miniature, versions: tuple[str, ...] = ("1.0", "1.1")) -> str:
    return "\n".join(lint(load_series(mini.root / "patches"), versions))


def test_a_patch_says_what_it_touches(mini: Miniature) -> None:
    (hook,) = load_series(mini.root / "patches")
    patch = hook.variant("1.1")
    assert patch is not None
    assert (hook.name, patch.added, patch.removed, patch.path) == ("choose", 1, 0, mini.patch)
    assert lint_of(mini) == ""


@pytest.mark.parametrize("field", ["Subject", "Why", "Applies", "Forwarded", "Remove-When"])
def test_each_header_is_required(mini: Miniature, field: str) -> None:
    lines = [line for line in PATCH.splitlines(keepends=True) if not line.startswith(field + ":")]
    mini.patch.write_text("".join(lines))
    assert f"1.0.patch:1: the header has no {field}" in faults_of(mini)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda text: text.replace("Why:", "Reason:"), "1.0.patch:2: unknown header Reason"),
        (lambda text: text.replace("Why:", "Subject: again\nWhy:"), "Subject is there twice"),
        (lambda text: text.replace(">=1.0,<=1.1", "from 1.0"), "Applies: "),
        (lambda text: text.replace("no: ours alone", "maybe"), "Forwarded must be"),
        (lambda text: text.replace("\ndiff", "\nsome prose\n\ndiff"), "neither a header nor a diff: 'some prose'"),
        (lambda text: text[: text.index("diff")], "there is no diff in it"),
        (lambda text: text.replace("-3,5 +3,6", "-3,5 +3,9"), "1.0.patch:17: git cannot read the diff: corrupt patch"),
        (lambda text: text + DIFF, "1.0.patch:17: sglang/loader.py is changed a second time"),
        (lambda text: whole(SAME, NEW) + DIFF.replace("loader", "new"), "11: sglang/new.py is changed a second time"),
        (lambda text: f"{text}+two\n", "1.0.patch:17: by its @@ the hunk above ends before '+two'"),
        (lambda text: f"{text}two = 2\n", "1.0.patch:17: by its @@ the hunk above ends before 'two = 2'"),
        (lambda text: f"{text}\n \n+two\n", "1.0.patch:19: by its @@ the hunk above ends before"),
        (lambda text: f"{text}-two\n{ENGINE_DIFF}", "1.0.patch:17: by its @@ the hunk above ends before"),
        (lambda text: text.replace("@@ -3,5 +3,6 @@", "@@ nonsense @@"), "1.0.patch:7: it changes no line"),
        (lambda text: text.replace("\n", "\r\n"), "choose/1.0.patch: its lines end in CRLF: `sed -i 's/\\r$//' "),
        (lambda text: HEADER + HEADLESS, "1.0.patch:8: sglang/loader.py has no line `diff --git a/FILE"),
        (lambda text: text + HEADLESS, "1.0.patch:18: sglang/loader.py has no line `diff --git"),
        (lambda text: HEADER + HEADLESS + DIFF, "1.0.patch:8: sglang/loader.py has no line `diff --git"),
        (lambda text: text.replace("sglang/loader", "../loader"), "outside sglang/"),
        (lambda text: text.replace("sglang/loader", "sglang/../../loader"), "1.0.patch:7: sglang/../../loader.py is"),
        (lambda text: text.replace("sglang/loader", "numpy/loader"), "outside sglang/"),
        (lambda text: text.replace("--- a/sglang/loader.py", "--- /dev/null"), "1.0.patch:7: it adds a file"),
        (lambda text: text.replace("b/sglang/loader.py", "b/sglang/other.py"), "1.0.patch:7: it does not begin with"),
        (lambda text: whole(MODE.replace("755", "600")), "1.0.patch:7: it does not begin with"),
        (lambda text: whole(MODE.replace("755", "644")), "1.0.patch:7: it does not begin with"),
        (lambda text: whole(f"{MODE}index {BLOB}..{BLOB} 100644\n"), "1.0.patch:7: a change of mode has no index line"),
        (lambda text: whole("deleted file mode 100644\n"), "1.0.patch:7: a file is deleted by its content: `index"),
        (lambda text: whole(DELETION.replace(BLOB, BLOB[:9])), "1.0.patch:7: a file is deleted by its content"),
        (lambda text: whole(f"{DELETION}--- a/{FILE}\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n"), "shows its content"),
        (lambda text: whole(RENAME, NEW), "1.0.patch:7: a file is renamed as it is by its content: `index ID..ID`"),
        (lambda text: whole(f"{RENAME}index {BLOB}..{'1' * 40}\n", NEW), "1.0.patch:7: a file is renamed as it is"),
        (lambda text: whole(f"index {BLOB}..{BLOB} 100644\n"), "1.0.patch:7: "),
        (lambda text: whole(f"copy from {FILE}\ncopy to {NEW}\n", NEW), "1.0.patch:7: it copies a file"),
        (lambda text: whole(SAME.replace(NEW, "new.py"), "new.py"), "1.0.patch:7: new.py is outside sglang/"),
        (lambda text: text + DIFF.replace("--- a/sglang/loader.py", "--- /dev/null"), "1.0.patch:17: it adds a file"),
        (lambda text: whole(SAME.replace(NEW, REPOSITORY), REPOSITORY), f"7: {REPOSITORY!r} is part of a git"),
        (
            lambda text: text[: text.index("diff")]
            + "diff --git a/sglang/native.so b/sglang/native.so\nGIT binary patch\nliteral 1\nIcmZPo000310RR91\n\n",
            "1.0.patch:7: a binary diff",
        ),
    ],
)  # fmt: skip
def test_a_malformed_patch_is_refused_with_its_line(mini: Miniature, change: Callable[[str], str], fault: str) -> None:
    text = change(PATCH)
    assert text != PATCH
    mini.patch.write_text(text)
    assert fault in faults_of(mini)


@pytest.mark.parametrize(
    ("text", "after"),
    [
        (whole(DELETION), FILE),
        (whole(MODE), FILE),
        (whole(SAME, NEW), NEW),
        (whole(f"{MODE}similarity index 100%\n{RENAME}index {BLOB}..{BLOB}\n", NEW), NEW),
        (PATCH.replace("--- a/", f"{MODE}--- a/"), FILE),
        (PATCH.replace(f"b/{FILE}", f"b/{NEW}").replace("--- a/", f"similarity index 90%\n{RENAME}--- a/"), NEW),
    ],
)
def test_what_is_done_to_whole_files_is_read(mini: Miniature, text: str, after: str) -> None:
    mini.patch.write_text(text)
    (file,) = load_series(mini.root / "patches")[0].variants[0].files
    assert (source_of(file), target_of(file)) == (FILE, after)
    assert lint_of(mini) == ""


@pytest.mark.parametrize("end", ["\n\n", ENGINE_DIFF, f"\n{ENGINE_DIFF}", "-- \n2.43.0\n\n", "--\n2.43.0\n- list\n"])
def test_what_git_and_mails_write_below_a_hunk_is_no_part_of_it(mini: Miniature, end: str) -> None:
    mini.patch.write_text(PATCH + end)
    assert lint_of(mini) == ""


def test_every_fault_is_said_at_once(mini: Miniature) -> None:
    mini.patch.write_text(PATCH.replace("Why:", "Reason:").replace("no: ours", "ours").replace("--- a/", "--- c/"))
    found = faults_of(mini)
    assert "Reason" in found
    assert "Forwarded" in found
    assert "does not begin with" in found


def test_the_series_and_the_folder_must_agree(mini: Miniature) -> None:
    mini.write("patches/other/1.0.patch", PATCH)
    mini.write("patches/choose/notes.txt", "x")
    mini.write("patches/series", "choose\nabsent\nchoose\n")
    found = faults_of(mini)
    assert "other is not a patch of a hook" in found
    assert "1.0.patch is not a patch of a hook" in found
    assert "notes.txt is not a patch of a hook" in found
    assert "series:2: there is no patch in" in found
    assert "patches/absent." in found
    assert "series:3: choose is listed twice" in found


def test_what_editors_leave_is_not_of_the_series(mini: Miniature) -> None:
    before = load_series(mini.root / "patches")
    for folder in ("patches", "patches/choose"):
        for name in (".1.0.patch.swp", ".0.patch", "1.0.patch~", "#1.0.patch#", ".cache/1.0.patch"):
            mini.write(f"{folder}/{name}", PATCH)
        (mini.root / folder / ".#1.0.patch").symlink_to("me@host.1:1")
    assert load_series(mini.root / "patches") == before
    assert lint_of(mini) == ""


@pytest.mark.parametrize("name", ["1.0.patch.orig", "1.0.patch.rej"])
def test_what_a_merge_has_left_beside_the_hooks_is_named(mini: Miniature, name: str) -> None:
    mini.write(f"patches/choose/{name}", PATCH)
    assert f"choose/{name} is not a patch of a hook" in faults_of(mini)


@pytest.mark.parametrize("name", ["CHANGELOG.md", "readme.md", "choose/README.md", "README.md/1.0.patch"])
def test_no_document_but_the_readme_may_stand_beside_the_hooks(mini: Miniature, name: str) -> None:
    assert (mini.root / "patches" / "README.md").is_file()
    assert [hook.name for hook in load_series(mini.root / "patches")] == ["choose"]
    (mini.root / "patches" / "README.md").unlink()
    mini.write(f"patches/{name}", PATCH)
    assert f"{name} is not a patch of a hook" in faults_of(mini)


def test_a_variant_for_a_release_candidate_alone_is_named_after_it(mini: Miniature) -> None:
    mini.write("patches/choose/1.2rc1.patch", PATCH.replace(">=1.0,<=1.1", ">1.1,<1.2.1"))
    assert lint_of(mini, ("1.0", "1.1", "1.2rc1")) == ""


def test_two_variants_for_one_release_are_refused(mini: Miniature) -> None:
    mini.write("patches/choose/1.1.patch", PATCH.replace(">=1.0", ">=1.1"))
    with pytest.raises(PatchError, match=r"1\.0\.patch and .*1\.1\.patch both apply to sglang 1\.1"):
        load_series(mini.root / "patches")[0].variant("1.1")
    assert "both apply" in lint_of(mini)


def test_a_release_without_a_variant_is_refused_where_one_is_due(mini: Miniature) -> None:
    with pytest.raises(PatchError, match=r"choose has no variant for sglang 1\.2"):
        load_series(mini.root / "patches")[0].variant("1.2")
    assert "no variant for sglang 1.2" in lint_of(mini, ("1.0", "1.1", "1.2"))


def test_a_gap_within_a_hook_is_found(mini: Miniature) -> None:
    mini.patch.write_text(PATCH.replace(">=1.0,<=1.1", "==1.0"))
    mini.write("patches/choose/1.2.patch", PATCH.replace(">=1.0,<=1.1", "==1.2"))
    assert lint_of(mini, ("1.0", "1.1", "1.2")) == "Hook choose has no variant for sglang 1.1."


@pytest.mark.parametrize("between", [" ", "\t", " \t "])
def test_a_hook_can_end(mini: Miniature, between: str) -> None:
    mini.write("patches/series", f"choose{between}<1.2  # upstream has it\n")
    assert load_series(mini.root / "patches")[0].variant("1.2") is None
    mini.patch.write_text(PATCH.replace("<=1.1", "<=1.2"))
    with pytest.raises(PatchError, match=r"the hook is due for <1\.2"):
        load_series(mini.root / "patches")[0].variant("1.2")


def test_a_post_release_counts_as_its_release(mini: Miniature) -> None:
    assert load_series(mini.root / "patches")[0].variant("1.0.post1") is not None


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda text: text.replace("--- a/", "index 1234567..89abcde 100644\n--- a/"), "1.0.patch:8: an index line"),
        (
            lambda text: text.replace("-3,5 +3,6", "-3,5 +3,6").replace(
                "     name = config.name\n", "-    name = config.name\n+    name = config.name\n"
            ),
            "1.0.patch:10: the hunk touches 3 lines where 1 would do",
        ),
        (
            lambda text: text.replace("-3,5 +3,6", "-3,12 +3,14") + "     a = 1\n" * 7 + "+    b = 2\n",
            "the hunk joins changes that are more than 6 lines apart; make it two",
        ),
        (lambda text: text.replace(">=1.0,<=1.1", ">=1.1"), "it first applies to 1.1; name it 1.1.patch"),
        (lambda text: text.replace(">=1.0,<=1.1", ">=7"), "does not hold for any locked release"),
    ],
)  # fmt: skip
def test_style_is_linted(mini: Miniature, change: Callable[[str], str], fault: str) -> None:
    text = change(PATCH)
    assert text != PATCH
    mini.patch.write_text(text)
    assert fault in lint_of(mini)


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda text: text.replace("(config)\n     name", "(config) \n     name"), "that end in white space: 14."),
        (lambda text: text.replace("(config)\n     name", "(config)\t\r\n     name"), "that end in white space: 14."),
        (lambda text: text.replace("+    config =", "+    config =\t"), "that hold a tab: 14."),
    ],
)
def test_a_matter_of_taste_is_a_warning_and_is_built_to_the_byte(
    mini: Miniature, change: Callable[[str], str], warning: str
) -> None:
    text = change(PATCH)
    mini.patch.write_bytes(text.encode())
    hooks = load_series(mini.root / "patches")
    assert lint_of(mini) == ""
    assert f"{mini.patch}: added lines {warning}" in find_warnings(hooks)
    (added,) = (line[1:] for line in text.split("\n") if line.startswith("+") and "choose" in line)
    with zipfile.ZipFile(mini.build().path) as archive:
        assert f"\n{added}\n".encode() in archive.read("sglang/loader.py")


def test_an_absent_series_is_named(mini: Miniature) -> None:
    (mini.root / "patches" / "series").unlink()
    assert "series: No such file" in faults_of(mini)
