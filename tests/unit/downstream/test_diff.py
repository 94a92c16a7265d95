from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from bench.port.small_diffs import Change
from overlay_tools.archive.mode import Executable, with_mode
from overlay_tools.downstream.diff import make_diff
from overlay_tools.downstream.worktree import Worktree
from overlay_tools.patches.apply import apply_series
from overlay_tools.patches.lint import lint
from overlay_tools.patches.model import Hook, Patch
from overlay_tools.patches.patch_file import load_patch

from unit.conftest import HEADER

FILE = "sglang/engine.py"


def written(tmp_path: Path, diff: str) -> Patch:
    path = tmp_path / "1.0.patch"
    path.write_bytes((HEADER + diff).encode())
    return load_patch(path, "choose")


def faults(patch: Patch) -> list[str]:
    return lint([Hook(name="choose", due=patch.applies, variants=(patch,))], ["1.0"])


def hook_of(tmp_path: Path, before: str, after: str) -> Patch:
    """Return the hook that turns one text into the other, which lint lets pass and which has that effect."""
    contents = {FILE: before.encode()}, {FILE: after.encode()}
    patch = written(tmp_path, make_diff(*contents))
    assert faults(patch) == []
    assert apply_series([patch], contents[0].get, "sglang 1.0") == contents[1]
    return patch


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by path, with their modes."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): with_mode(path.read_bytes(), executable=os.access(path, os.X_OK))
        for path in paths
    }


def made_by_git(folder: Path, before: Mapping[str, bytes], diff: str) -> dict[str, bytes]:
    """Return what git makes of files with a diff, but for deletions: it applies none without the content."""
    tree = Worktree(folder)
    tree.write(before)
    sections = re.split(r"(?m)^(?=diff --git a/sglang/\d)", diff)
    tree.git("apply", "--whitespace=nowarn", "-", stdin="".join(part for part in sections if "\ndeleted" not in part))
    return files_in(folder)


def test_whatever_is_written_applies_and_passes_lint(tmp_path: Path) -> None:
    draw, kinds = random.Random(21), Counter[str]()
    for number in range(60):
        change = Change()
        for n in range(50):
            change.add(draw, f"sglang/{n:02}.txt")
        diff = make_diff(change.before, change.after, change.renamed)
        patch = written(tmp_path, diff)
        assert apply_series([patch], change.before.get, "sglang 1.0") == change.touched
        assert faults(patch) == []
        gone = {name for name, data in change.after.items() if data is None} - {*change.renamed.values()}
        kept = {name: data for name, data in change.before.items() if name not in gone}
        wanted = {name: data for name, data in (kept | change.touched).items() if data is not None}
        assert made_by_git(tmp_path / str(number), kept, diff) == wanted
        kinds.update(re.findall(r"(?m)^(?:deleted|rename from|old mode|@@ -)", diff))
    assert min(kinds["deleted"], kinds["rename from"], kinds["old mode"]) > 300


EMPTY = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


@pytest.mark.parametrize(
    ("before", "after", "renamed", "diff"),
    [
        (
            {"sglang/a.py": b"a\n"}, {"sglang/a.py": None}, {},
            "diff --git a/sglang/a.py b/sglang/a.py\ndeleted file mode 100644\n"
            f"index 78981922613b2afb6025042ff6bd878ac1994e85..{'0' * 40}\n",
        ),
        (
            {"sglang/a.py": b""}, {"sglang/a.py": None, "sglang/b.py": b""}, {"sglang/b.py": "sglang/a.py"},
            "diff --git a/sglang/a.py b/sglang/b.py\nsimilarity index 100%\nrename from sglang/a.py\n"
            f"rename to sglang/b.py\nindex {EMPTY}..{EMPTY}\n",
        ),
        (
            {"sglang/a.py": b"a\nb\nc\nd\n"}, {"sglang/a.py": None, "sglang/b.py": Executable(b"a\nb\nc\nD\n")},
            {"sglang/b.py": "sglang/a.py"},
            "diff --git a/sglang/a.py b/sglang/b.py\nold mode 100644\nnew mode 100755\nsimilarity index 75%\n"
            "rename from sglang/a.py\nrename to sglang/b.py\n--- a/sglang/a.py\n+++ b/sglang/b.py\n"
            "@@ -1,4 +1,4 @@\n a\n b\n c\n-d\n+D\n",
        ),
        (
            {"sglang/a.py": Executable(b"a\n")}, {"sglang/a.py": b"a\n"}, {},
            "diff --git a/sglang/a.py b/sglang/a.py\nold mode 100755\nnew mode 100644\n",
        ),
    ],
)  # fmt: skip
def test_what_is_done_to_whole_files_is_written_as_git_does(
    before: dict[str, bytes], after: dict[str, bytes | None], renamed: dict[str, str], diff: str
) -> None:
    assert make_diff(before, after, renamed) == diff


@pytest.mark.parametrize(
    ("before", "after"),
    [("", "import os\n"), ("import os\n", ""), ("", "import os"), ("a\n", "a"), ("a", "a\n"), ("a\nb", "a\nc")],
)
def test_an_empty_file_and_a_last_line_without_an_end_are_hooks_too(tmp_path: Path, before: str, after: str) -> None:
    hook_of(tmp_path, before, after)


def test_blank_lines_at_the_end_of_a_file_are_told_from_its_end(tmp_path: Path) -> None:
    hook_of(tmp_path, "\n\n", "\nb\n\n\n")
    hook_of(tmp_path, "a\n\n\n", "a\n\nb\n\n")


def test_a_block_that_is_wrapped_is_written_as_lint_wants_it(tmp_path: Path) -> None:
    body = "".join(f"    step({n})\n\n    log(\n        {n}\n    )\n\n" for n in range(12))
    wrapped = "".join(f"    {line}" if line.strip() else line for line in body.splitlines(keepends=True))
    hook_of(tmp_path, f"def run():\n{body}    return\n", f"def run():\n    if ours:\n{wrapped}    return\n")


@pytest.mark.parametrize("same", [11, 60])
def test_of_two_twin_branches_one_can_be_changed(tmp_path: Path, same: int) -> None:
    branch = "".join(f"        step({n})\n" for n in range(2 * same + 1))
    text = f"def run(kind):\n    if kind:\n{branch}    else:\n{branch}    return kind\n"
    head, _, tail = text.rpartition(f"        step({same})\n")
    rest = "".join(f"a = {n}\n" for n in range(20)) + "b = "
    patch = hook_of(tmp_path, f"{text}{rest}2\n", f"{head}        ours()\n{tail}{rest}3\n")
    # One needs all that follows in its branch; the other hunk has three lines, as ever.
    assert [hunk.source_length for hunk in patch.files[0]] == [2 * same + 3, 4]
