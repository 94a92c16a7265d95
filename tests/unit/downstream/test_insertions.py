"""What the benchmark of `port` rests on: that it can tell a wrong place from a right one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import pytest
from bench.port.insertions import Answer, Insertion, Neighbours, choose, judge
from bench.port.release_repository import ReleaseRepository
from overlay_tools.archive.reader import WheelReader
from overlay_tools.subprocesses import git
from overlay_tools.upstream.source_tree import SourceTree

from unit.conftest import ENGINE, TAG, upstream_files, write_wheel

FILE = "sglang/engine.py"
GET = "        entry = self.table[key]\n        self.hits += 1\n        return entry\n"
PUT = "    def put(self, key, value):\n        entry = self.make(key, value)\n        self.table[key] = entry\n"
LINE = "        pass  # insertion 0"
INSERTION = Insertion(file=FILE, after=9, line=LINE, scope="Cache.get")  # after `self.hits += 1`

MakeRepository = Callable[..., ReleaseRepository]


@pytest.fixture
def repository(tmp_path: Path) -> Iterable[MakeRepository]:
    """Return what makes a repository of releases with these texts of one file."""
    with ExitStack() as stack:

        def make(*texts: str) -> ReleaseRepository:
            sources = []
            for number, text in enumerate(texts):
                files = upstream_files(f"1.{number}") | {FILE: text.encode()}
                path = write_wheel(tmp_path / f"sglang-1.{number}-{TAG}.whl", files)
                sources.append(SourceTree(f"1.{number}", stack.enter_context(WheelReader(path))))
            return ReleaseRepository(tmp_path / "git", sources)

        yield make


def inserted(text: str, after: int) -> Answer:
    lines = text.split("\n")
    return FILE, "\n".join([*lines[:after], LINE, *lines[after:]]).encode()


def test_insertions_lie_near_changes_and_are_the_same_every_time(repository: MakeRepository) -> None:
    made = repository(ENGINE, ENGINE.replace("return None", "return 1").replace("(batch)\n", "(batch, 1)\n"))
    chosen = choose(made.sources[0], made.changed_lines(), 9, 1)
    assert chosen == choose(made.sources[0], made.changed_lines(), 9, 1)
    assert {(item.scope, item.after) for item in chosen} == {("Engine.step", 24), ("unload", 38)}
    assert all(item.line.lstrip().startswith("pass  # insertion ") for item in chosen)


def test_the_neighbours_of_an_insertion_are_followed_through_every_release(repository: MakeRepository) -> None:
    further = "# new\n" + ENGINE
    made = repository(ENGINE, further, "# newer\n" + further.replace("        return entry\n", "        return 1\n", 1))
    assert made.follow(INSERTION) == [
        Neighbours(before=9, after=10),
        Neighbours(before=10, after=11),
        Neighbours(before=11, after=None),
    ]


@pytest.mark.parametrize(
    ("truth", "after", "verdict"),
    [
        (Neighbours(before=9, after=10), 9, "right"),
        (Neighbours(before=9, after=None), 9, "right"),
        (Neighbours(before=None, after=10), 9, "right"),
        (Neighbours(before=9, after=10), 14, "wrong"),
        (Neighbours(before=None, after=None), 9, "right"),  # by the function and a neighbour's text
        (Neighbours(before=None, after=None), 14, "wrong"),  # before the same text in another function
        (Neighbours(before=None, after=None), 7, "wrong"),
    ],
)
def test_an_answer_is_right_in_its_function_next_to_a_neighbour(
    repository: MakeRepository, truth: Neighbours, after: int, verdict: str
) -> None:
    old = repository(ENGINE).sources[0]
    assert judge(INSERTION, truth, old, old, inserted(ENGINE, after)) == verdict
    for answer in (None, (FILE, ENGINE.encode())):
        assert judge(INSERTION, truth, old, old, answer) == "given up"


def test_lines_that_are_followed_into_another_function_say_nothing_while_its_own_is_there(
    repository: MakeRepository,
) -> None:
    # Of what is now two functions, a diff may take either for the old one.
    old = repository(ENGINE).sources[0]
    astray = Neighbours(before=None, after=15)
    assert judge(INSERTION, astray, old, old, inserted(ENGINE, 9)) == "right"
    assert judge(INSERTION, astray, old, old, inserted(ENGINE, 14)) == "wrong"


FIND = ENGINE.replace("def get(", "def find(")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (FIND, "right"),
        (
            FIND.replace("    def find(", "    def get(self):\n        return 1\n\n    def find("),
            "wrong",
        ),  # it is there still
        (FIND.replace("self.hits += 1", "self.hits += 2"), "wrong"),  # one neighbour is not enough
    ],
)
def test_a_function_may_be_called_otherwise_now(repository: MakeRepository, text: str, verdict: str) -> None:
    old, new = repository(ENGINE, text).sources
    at = text.split("\n").index("        return entry")
    assert judge(INSERTION, Neighbours(before=None, after=None), old, new, inserted(text, at)) == verdict


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_the_diff_of_an_insertion_is_the_one_that_git_makes(repository: MakeRepository, end: str) -> None:
    text = ENGINE[: ENGINE.index("        return entry")].rstrip() + "\n        return entry" + end
    made = repository(text)
    changed = inserted(text, 9)
    assert changed is not None
    (made.folder / FILE).write_bytes(changed[1])
    _, _, hunks = git(["diff", "--", FILE], cwd=made.folder).stdout.partition("@@")
    assert re.sub(" @@ .*", " @@", hunks) == made.diff(INSERTION).partition("@@")[2]


def test_each_tool_applies_a_diff_where_its_lines_stand_and_gives_up_where_they_are_gone(
    repository: MakeRepository,
) -> None:
    made = repository(ENGINE, "# new\n" + ENGINE)
    diff, truth = made.diff(INSERTION), made.follow(INSERTION)[-1]
    gone = made.diff(INSERTION).replace("self.hits", "self.misses")
    for apply in (made.git_apply, made.git_apply_three_way, made.gnu_patch):
        assert judge(INSERTION, truth, made.sources[0], made.sources[1], apply(INSERTION, diff)) == "right"
        assert apply(INSERTION, gone.replace("return entry", "return misses")) is None
