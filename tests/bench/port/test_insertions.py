"""How hunks are carried to other releases; `nox -s bench-port` measures it and shows the figures.

`--from`, `--to` and `--insertions` say which insertions are carried where.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
from overlay_tools import console
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.patch_file import load_patch
from overlay_tools.patches.relocate import relocate
from overlay_tools.settings import cache_dir
from overlay_tools.upstream.lockfile import get_release, load_lock
from overlay_tools.upstream.source_tree import SourceTree, open_source_tree

from bench.port.insertions import Answer, Insertion, Neighbours, choose, judge
from bench.port.release_repository import ReleaseRepository

ROOT = Path(__file__).parents[3]
HEADER = "Subject: s\nWhy: w\nApplies: =={}\nForwarded: no: made up\nRemove-When: never\n\n"
WORDS = ("right", "wrong", "given up")
OTHERS = ("git apply", "git apply -3", "patch")
OURS = ("port, applied", "port, proposed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """An insertion, the diff that makes it, and where it belongs."""

    insertion: Insertion
    diff: str
    truth: Neighbours


class Verdict(NamedTuple):
    """How an insertion came out, carried by a tool."""

    tool: str
    word: str
    insertion: Insertion


def test_no_insertion_is_carried_to_a_wrong_place(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    lock = load_lock(ROOT / "upstream.lock")
    versions = list(lock)
    old, new = pytestconfig.getoption("--from"), pytestconfig.getoption("--to") or versions[-1]
    for version in (old, new):
        get_release(lock, version, ROOT / "upstream.lock")
    between = versions[versions.index(old) : versions.index(new) + 1]
    assert len(between) > 1, f"{old} is not older than {new}"
    with ExitStack() as stack:
        sources = [stack.enter_context(open_source_tree(lock[version], cache_dir())) for version in between]
        verdicts = carry(sources, pytestconfig.getoption("--insertions"), tmp_path)
    counts = Counter((verdict.tool, verdict.word) for verdict in verdicts)
    for tool in (*OTHERS, *OURS):
        console.line(f"  {tool:<15}" + ",".join(f" {counts[tool, word]:>4} {word}" for word in WORDS))
    assert [verdict for verdict in verdicts if verdict.tool in OURS and verdict.word == "wrong"] == []
    assert sum(counts[tool, "right"] for tool in OURS) > max(counts[tool, "right"] for tool in OTHERS)


def carry(sources: Sequence[SourceTree], count: int, folder: Path) -> list[Verdict]:
    """Carry insertions from the first to the last of some releases with each tool."""
    old, new = sources[0], sources[-1]
    repository = ReleaseRepository(folder / "git", sources)
    with console.step(f"Choose {count} places that upstream changed from {old.version} to {new.version}"):
        insertions = choose(old, repository.changed_lines(), count, 1)
    with console.step("Follow them through the releases between"):
        cases = [Case(insertion=i, diff=repository.diff(i), truth=repository.follow(i)) for i in insertions]
    tools = (repository.git_apply, repository.git_apply_three_way, repository.gnu_patch)
    verdicts = []
    for tool, apply in zip(OTHERS, tools, strict=True):
        with console.step(tool):
            for case in cases:
                answer = apply(case.insertion, case.diff)
                verdicts.append(Verdict(tool, judge(case.insertion, case.truth, old, new, answer), case.insertion))
    with console.step("port"):
        for case in cases:
            tool, answer = port(case, old, new, folder)
            verdicts.append(Verdict(tool, judge(case.insertion, case.truth, old, new, answer), case.insertion))
    return verdicts


def port(case: Case, old: SourceTree, new: SourceTree, folder: Path) -> tuple[str, Answer]:
    """Carry an insertion as `port` does; return whether that applies or proposes it, and what comes out."""
    path = folder / "insertion.patch"
    path.write_text(HEADER.format(old.version) + case.diff, encoding="utf-8")
    relocated = relocate(load_patch(path, "insertion"), HookedTree(old), HookedTree(new))
    (placement,) = relocated.placements
    made = relocated.files.get(placement.file)
    return OURS[0] if relocated.settled else OURS[1], None if made is None else (placement.file, made)
