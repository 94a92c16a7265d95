"""pyproject.toml as export and import write it."""

from __future__ import annotations

import pytest
import tomlkit
from overlay_tools.downstream.settings_file import with_dependencies, with_ranges

HEAD = """\
# kept
[tool.sglang-overlay]
default = "1.0"      # kept too
plugin = []
"""
TAIL = """
[tool.ruff]
line-length = 120   # and this

[[tool.importlinter.contracts]]
name = "a"
"""
EVERY = [
    "sglang/srt/registry.py",
    "sglang/srt/kt/a.py",
    "sglang/srt/kt/b/c.py",
    "sglang/srt/layers/x.py",
    "sglang/y.py",
]
KT = {"sglang/srt/kt/a.py": "==0.5.9", "sglang/srt/kt/b/c.py": "==0.5.9"}


@pytest.mark.parametrize("tail", [TAIL, ""])
def test_a_folder_with_one_range_is_one_line_and_all_else_stays(tail: str) -> None:
    made = with_ranges(HEAD + tail, {**KT, "sglang/srt/layers/x.py": "<1"}, [*EVERY, "sglang/srt/layers/z.py"])
    assert made.startswith(HEAD)
    assert made.rstrip("\n").endswith(tail.rstrip("\n"))
    assert made[len(HEAD) : len(made) - len(tail)].strip("\n") == (
        '[tool.sglang-overlay.files]\n"sglang/srt/kt/*" = "==0.5.9"\n"sglang/srt/layers/x.py" = "<1"'
    )
    assert with_ranges(made, KT, [*EVERY, "sglang/srt/layers/z.py"]) == made


def test_line_ends_stay_as_they_are() -> None:
    text = (HEAD + TAIL).replace("\n", "\r\n")
    assert with_ranges(text, KT, EVERY) == with_ranges(HEAD + TAIL, KT, EVERY).replace("\n", "\r\n")
    made = with_dependencies(text, "==1", ["a==1"], [])
    assert made == with_dependencies(HEAD + TAIL, "==1", ["a==1"], []).replace("\n", "\r\n")


def test_without_a_range_the_text_stays_as_it_is() -> None:
    assert with_ranges(HEAD + TAIL, {}, EVERY) == HEAD + TAIL
    assert with_ranges(HEAD + TAIL, dict.fromkeys(EVERY, ""), EVERY) == HEAD + TAIL


def rows(text: str) -> list[str]:
    return text.partition("[tool.sglang-overlay.files]\n")[2].partition("\n\n")[0].splitlines()


def given(*lines: str) -> str:
    return f"{HEAD}\n[tool.sglang-overlay.files]\n" + "".join(f"{line}\n" for line in lines) + TAIL


def test_a_file_that_differs_divides_the_folder() -> None:
    text = given('"sglang/srt/kt/*" = "==0.5.9"   # why', '"sglang/y.py" = "<1"   # mine')
    made = with_ranges(text, {"sglang/srt/kt/d.py": ">=1"}, [*EVERY, "sglang/srt/kt/d.py"])
    assert rows(made) == [
        '"sglang/y.py" = "<1"   # mine',
        '"sglang/srt/kt/a.py" = "==0.5.9"',
        '"sglang/srt/kt/b/c.py" = "==0.5.9"',
        '"sglang/srt/kt/d.py" = ">=1"',
    ]
    assert made.endswith(TAIL)


def test_lines_whose_files_are_gone_go() -> None:
    text = given('"sglang/srt/kt/*" = "==0.5.9"', '"sglang/y.py" = "<1"')
    assert rows(with_ranges(text, {}, ["sglang/y.py"])) == ['"sglang/y.py" = "<1"']
    assert with_ranges(text, {}, ["sglang/z.py"]) == HEAD + TAIL


def test_a_folder_that_later_files_are_to_go_to_is_not_one_line() -> None:
    made = with_ranges(HEAD, {"sglang/a.py": "<1", "sglang/srt/b.py": "<1"}, ["sglang/a.py", "sglang/srt/b.py"])
    assert rows(made) == ['"sglang/a.py" = "<1"', '"sglang/srt/b.py" = "<1"']


def test_letters_of_a_name_that_a_glob_understands_stand_for_themselves() -> None:
    name = "sglang/srt/configs/E=8[a]*.json"
    made = with_ranges(HEAD, {name: "<1"}, [name, "sglang/srt/configs/E=8a.json"])
    assert rows(made) == ['"sglang/srt/configs/E=8[[]a][*].json" = "<1"']
    assert with_ranges(made, {}, [name, "sglang/srt/configs/E=8a.json"]) == made


def test_changed_requirements_are_a_table_of_their_own() -> None:
    made = with_dependencies(HEAD + TAIL, "==1.0", ["a==1", 'b; extra == "x"'], ["c"])
    table = """\
releases = "==1.0"
override = [
    "a==1",
    'b; extra == "x"',
]
exclude = [
    "c",
]
"""
    assert made == f"{HEAD}\n[[tool.sglang-overlay.dependencies]]\n{table}{TAIL}"
    assert with_dependencies(made, "==1.0", ["a==1", 'b; extra == "x"'], ["c"]) == made
    again = with_dependencies(made, "", [], ["d"])
    assert again == made.replace(TAIL, f'\n[[tool.sglang-overlay.dependencies]]\nexclude = [\n    "d",\n]\n{TAIL}')
    assert with_dependencies(HEAD, "==1.0", [], []) == HEAD


@pytest.mark.parametrize("written", ["[]", '[{ exclude = ["b"] }]', '[\n    { exclude = ["b"] },  # mine\n]'])
def test_changed_requirements_that_a_person_has_written_inline_get_one_more(written: str) -> None:
    made = with_dependencies(f"{HEAD}dependencies = {written}\n{TAIL}", "==1.0", ["a==1"], [])
    found = tomlkit.parse(made).unwrap()["tool"]["sglang-overlay"]["dependencies"]
    assert found == [{"exclude": ["b"]}] * ("b" in written) + [{"releases": "==1.0", "override": ["a==1"]}]
    assert ("# mine" in made) == ("# mine" in written)
    assert made.endswith(TAIL)
    assert with_dependencies(made, "==1.0", ["a==1"], []) == made


def test_our_tables_may_stand_after_those_of_others() -> None:
    files, dependencies = '[tool.sglang-overlay.files]\n"sglang/y.py" = "<1"\n', DEPENDENCIES
    text = with_ranges(HEAD + TAIL + dependencies, KT, EVERY)
    assert tables(text) == (["dependencies", "files"], {"sglang/srt/kt/*": "==0.5.9"}, 1)
    text = with_dependencies(HEAD + TAIL + files, "", ["kt"], [])
    assert tables(text) == (["dependencies", "files"], {"sglang/y.py": "<1"}, 1)
    text = with_ranges(HEAD + TAIL + files, {"sglang/y.py": ""}, EVERY)
    assert tables(text) == ([], {}, 0)
    assert TAIL in text


DEPENDENCIES = "[[tool.sglang-overlay.dependencies]]\nexclude = ['numpy']\n"


def tables(text: str) -> tuple[list[str], dict[str, str], int]:
    """Return which of our tables a text has, its ranges, and how many tables of requirements."""
    tool = tomlkit.parse(text).unwrap()["tool"]
    assert tool["ruff"] == {"line-length": 120}
    ours = tool["sglang-overlay"]
    assert ours["default"] == "1.0"
    found = ours.get("files", {}), ours.get("dependencies", [])
    return sorted({"files", "dependencies"} & ours.keys()), found[0], len(found[1])
