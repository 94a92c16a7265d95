"""Insertions at places that upstream changed: none is applied wrongly, and few proposals are wrong."""

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
from bench.port.scratch_checkout import ROOT

HEADER = "Subject: s\nWhy: w\nApplies: =={}\nForwarded: no: made up\nRemove-When: never\n\n"
WORDS = ("right", "wrong", "given up")
OTHERS = ("git apply", "git apply -3", "patch")
OURS = ("port, applied", "port, proposed")
PAIRS = ("0.5.7:0.5.11", "0.5.9:0.5.13.post1", "0.5.12.post1:0.5.17", "0.5.16:0.5.20", "0.5.16:0.5.23")
MOST_WRONG = 0.005  # of insertions, proposed at a wrong place, where a person sees them


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """An insertion, the diff that makes it, and where it belongs."""

    insertion: Insertion
    diff: str
    truth: Neighbours


class Verdict(NamedTuple):
    """How an insertion came out, carried by a tool, and what the tool says of it."""

    tool: str
    word: str
    insertion: Insertion
    found: str


def test_no_insertion_is_carried_to_a_wrong_place(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    pairs, seed = pytestconfig.getoption("--pair") or PAIRS, pytestconfig.getoption("--seed")
    verdicts: list[Verdict] = []
    with ExitStack() as stack:
        for number, pair in enumerate(pairs):
            share = pytestconfig.getoption("--insertions") // len(pairs)
            folder = tmp_path / str(number)
            folder.mkdir()
            verdicts += carry(open_releases(pair, stack), share, seed, folder)
    counts = Counter((verdict.tool, verdict.word) for verdict in verdicts)
    total = sum(counts[OTHERS[0], word] for word in WORDS)
    wrong = {tool: [verdict for verdict in verdicts if verdict[:2] == (tool, "wrong")] for tool in OURS}
    title = f"{total} insertions, {', '.join(pairs)}, seed {seed}"
    rows = [(tool, ",".join(f" {counts[tool, word]:>4} {word}" for word in WORDS)) for tool in (*OTHERS, *OURS)]
    notes = ["   (promised: none wrong)", f"   (promised: at most {MOST_WRONG:.1%} of all wrong)"]
    console.table(
        title, [*rows[:-2], *((tool, text + note) for (tool, text), note in zip(rows[-2:], notes, strict=True))]
    )
    for verdict in wrong["port, proposed"]:
        console.line(f"  wrong proposal: {verdict.insertion.file}, {verdict.insertion.scope}: {verdict.found}")
    assert wrong["port, applied"] == []
    assert len(wrong["port, proposed"]) <= MOST_WRONG * total
    assert sum(counts[tool, "right"] for tool in OURS) > max(counts[tool, "right"] for tool in OTHERS)


def open_releases(pair: str, stack: ExitStack) -> list[SourceTree]:
    """Open the releases from one to another, written OLD:NEW."""
    lock = load_lock(ROOT / "upstream.lock")
    old, _, new = pair.partition(":")
    for version in (old, new):
        get_release(lock, version, ROOT / "upstream.lock")
    versions = list(lock)
    between = versions[versions.index(old) : versions.index(new) + 1]
    assert len(between) > 1, f"{old} is not older than {new}"
    return [stack.enter_context(open_source_tree(lock[version], cache_dir())) for version in between]


def carry(sources: Sequence[SourceTree], count: int, seed: int, folder: Path) -> list[Verdict]:
    """Carry insertions from the first to the last of some releases with each tool."""
    old, new = sources[0], sources[-1]
    repository = ReleaseRepository(folder / "git", sources)
    with console.step(f"Choose {count} places that upstream changed from {old.version} to {new.version}"):
        insertions = choose(old, repository.changed_lines(), count, seed)
    with console.step("Follow them through the releases between"):
        cases = [Case(insertion=i, diff=repository.diff(i), truth=repository.follow(i)[-1]) for i in insertions]
    tools = (repository.git_apply, repository.git_apply_three_way, repository.gnu_patch)
    verdicts = []
    for tool, apply in zip(OTHERS, tools, strict=True):
        with console.step(tool):
            for case in cases:
                word = judge(case.insertion, case.truth, old, new, apply(case.insertion, case.diff))
                verdicts.append(Verdict(tool, word, case.insertion, ""))
    with console.step("port"):
        for case in cases:
            tool, found, answer = port(case, old, new, folder)
            word = judge(case.insertion, case.truth, old, new, answer)
            verdicts.append(Verdict(tool, word, case.insertion, found))
    return verdicts


def port(case: Case, old: SourceTree, new: SourceTree, folder: Path) -> tuple[str, str, Answer]:
    """Carry an insertion as `port` does; return whether that applies or proposes it, what it says, what comes out."""
    path = folder / "insertion.patch"
    path.write_text(HEADER.format(old.version) + case.diff, encoding="utf-8")
    relocated = relocate(load_patch(path, "insertion"), HookedTree(old), HookedTree(new))
    (placement,) = relocated.placements
    made = relocated.files.get(placement.file)
    found = f"{placement.outcome}: {placement.note}, at {placement.file}:{placement.line}"
    return OURS[0] if relocated.settled else OURS[1], found, None if made is None else (placement.file, made)
