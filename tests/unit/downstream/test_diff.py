from __future__ import annotations

import random
from pathlib import Path

import pytest
from bench.port.small_diffs import random_pair
from overlay_tools.downstream.diff import make_diff
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


def test_whatever_is_written_applies_and_passes_lint(tmp_path: Path) -> None:
    draw = random.Random(21)
    for _ in range(60):
        pairs = {f"sglang/{n:02}.txt": random_pair(draw) for n in range(50)}
        before = {name: old for name, (old, _) in pairs.items()}
        changed = {name: new for name, (old, new) in pairs.items() if new != old}
        patch = written(tmp_path, make_diff(before, {name: new for name, (_, new) in pairs.items()}))
        assert apply_series([patch], before.get, "sglang 1.0") == changed
        assert faults(patch) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [("", "import os\n"), ("import os\n", ""), ("", "import os"), ("a\n", "a"), ("a", "a\n"), ("a\nb", "a\nc")],
)
def test_an_empty_file_and_a_last_line_without_an_end_are_hooks_too(tmp_path: Path, before: str, after: str) -> None:
    hook_of(tmp_path, before, after)


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
