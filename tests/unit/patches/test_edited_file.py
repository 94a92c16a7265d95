from __future__ import annotations

from overlay_tools.patches.edited_file import Edit, EditedFile, Region
from unidiff import Hunk, PatchSet

from unit.conftest import ENGINE

FILE = "sglang/engine.py"
LOAD = ["    config = read(path)", "    model = build(config)"]


def edited(*edits: tuple[int, int, Region]) -> EditedFile:
    file = EditedFile(ENGINE.encode())
    for start, end, region in edits:
        file.apply(Edit(file=FILE, start=start, end=end, parts=[region]))
    return file


def hunk(*block: str) -> Hunk:
    """Return one that expects these lines, between the first and the last line of a file."""
    text = f"--- a/{FILE}\n+++ b/{FILE}\n@@ -2,{len(block)} +2,{len(block) + 1} @@\n"
    text += "".join(f" {line}\n" for line in block[:-1]) + f"+\n {block[-1]}\n"
    return PatchSet.from_string(text)[0][0]


def proposal(*lines: str) -> Region:
    return Region(ours=LOAD, theirs=lines)


def test_a_file_without_an_edit_is_unchanged() -> None:
    file = edited()
    assert not file.changed
    assert file.find(hunk(*LOAD)) == [30]
    assert file.line_number(30) == 31
    assert file.parts_of_scope("load") == range(29, 34)
    assert file.parts_of_scope("lost") is None


def test_a_region_counts_with_the_lines_that_are_shown() -> None:
    conflict = Region(ours=LOAD, theirs=["    ours()"], base=["    model = old(path)"], conflict=True)
    file = edited((30, 32, conflict))
    assert file.changed  # although its lines are as they were
    assert file.lines == ENGINE.split("\n")
    assert file.line_number(31) == 33
    file = edited((30, 32, proposal("    a()", "    b()", "    c()")))
    assert file.line_number(31) == 34
    assert file.lines[30:34] == ["    a()", "    b()", "    c()", "    check(model, strict)"]


def test_nothing_is_found_in_a_region_or_across_one() -> None:
    file = edited((30, 32, proposal(*LOAD)))
    assert file.lines == ENGINE.split("\n")
    assert file.find(hunk(*LOAD)) == file.find(hunk("def load(path, strict=True):", *LOAD)) == []
    assert file.find(hunk("    check(model, strict)")) == [31]
    file = edited((30, 32, proposal()))  # which leaves no line at all
    assert file.find(hunk("def load(path, strict=True):", "    check(model, strict)")) == []


def test_a_function_has_the_whole_of_a_region_that_reaches_into_it() -> None:
    across = Region(ours=[], theirs=["    return model", "", "", "def unload(model):", "    stop()"])
    file = edited((33, 37, across))  # from the last line of `load` to the first of `unload`
    assert file.parts_of_scope("load") == range(29, 34)
    assert file.parts_of_scope("unload") == range(33, 36)
    assert file.parts_of_scope("Cache") == range(3, 15)


def test_markers_name_their_sides_and_leave_an_empty_base_out() -> None:
    file = edited((30, 32, proposal("    a()")), (0, 1, Region(ours=[], theirs=["b"], base=["c"], conflict=True)))
    lines = list(file.with_markers("new", "old", "hook"))
    assert lines[:7] == ["<<<<<<< new", "||||||| old", "c", "=======", "b", ">>>>>>> hook", ""]
    assert lines[35:41] == ["<<<<<<< new", *LOAD, "=======", "    a()", ">>>>>>> hook"]
