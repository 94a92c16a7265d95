"""What the benchmark of `port` makes up: hooks that apply alone, and what each file must be with a series of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import pytest
from bench.port.changes import choose_changes
from bench.port.made_up_series import LOGGER, MadeUpSeries, make_up
from bench.port.release_repository import ReleaseRepository
from bench.port.scratch_checkout import Ended
from overlay_tools.archive.mode import with_mode
from overlay_tools.archive.reader import WheelReader
from overlay_tools.downstream.foreign_patch import apply_as_stated, read_patches
from overlay_tools.patches.apply import apply_series
from overlay_tools.patches.patch_file import load_patch
from overlay_tools.upstream.source_tree import SourceTree
from unidiff import PatchSet

from unit.conftest import ENGINE, TAG, upstream_files, write_wheel

HEAD = f"import logging\n\n{LOGGER}\n\n\n"
FILES = [f"sglang/srt/engine_{n}.py" for n in range(8)]
NEWER = ENGINE.replace("return entry", "return self.entry").replace("class Engine", "import sys\n\n\nclass Engine")
OWN = ["sglang/srt/engine_7.py"]

Make = Callable[..., list[SourceTree]]


@pytest.fixture
def releases(tmp_path: Path) -> Iterable[Make]:
    """Return what makes releases, each with a text in several files."""
    with ExitStack() as stack:

        def make(*texts: str) -> list[SourceTree]:
            made = []
            for number, text in enumerate(texts):
                files = upstream_files(f"1.{number}") | {name: (HEAD + text).encode() for name in FILES}
                path = write_wheel(tmp_path / f"sglang-1.{number}-{TAG}.whl", files)
                made.append(SourceTree(f"1.{number}", stack.enter_context(WheelReader(path))))
            return made

        yield make


@pytest.fixture
def series(releases: Make, tmp_path: Path) -> MadeUpSeries:
    return make_up(ReleaseRepository(tmp_path / "git", releases(ENGINE, NEWER, NEWER)), OWN, 16, 4, 1)


def test_each_change_of_upstream_is_a_hook_that_applies_alone(releases: Make, tmp_path: Path) -> None:
    old, new = releases(ENGINE, NEWER)[:2]
    old = old.changed({name: with_mode(old.read(name) or b"", executable=True) for name in FILES[:2]})
    hooks = choose_changes(old, new, 8, 1)
    assert len(hooks) == 8
    assert hooks == choose_changes(old, new, 8, 1)
    assert hooks != choose_changes(old, new, 8, 2)
    for text in hooks.values():
        path = tmp_path / "1.0.patch"
        path.write_text(text)
        assert "new mode" not in text  # lines alone
        ((name, made),) = apply_series([load_patch(path, "change")], old.read, "sglang 1.0").items()
        assert made is not None
        assert old.read(name) != made
        assert set(made.splitlines()) <= {*(old.read(name) or b"").splitlines(), *(new.read(name) or b"").splitlines()}


def test_a_series_is_the_same_for_a_seed_and_leaves_files_of_others_alone(series: MadeUpSeries) -> None:
    assert [hook.name for hook in series.hooks] == [f"made-up-{n:02}" for n in range(16)]
    assert not {*series.files} & {*OWN}
    assert len({(hook.file, hook.line.strip()) for hook in series.hooks}) == 16


def test_half_of_the_chained_hooks_take_a_name_and_half_change_a_line(series: MadeUpSeries) -> None:
    by_name = [hook for hook in series.hooks if " import MADE_UP_" in hook.line]
    by_line = [hook for hook in series.hooks if hook.changes]
    assert len(by_name) == len(by_line) == 2
    names = {hook.name: hook for hook in series.hooks}
    for hook in by_name:
        module, _, name = hook.line.split("from ")[1].split(" as ")[0].partition(" import ")
        (source,) = (other for other in series.hooks if other.line.startswith(f"{name} = "))
        assert source.file == f"{module.replace('.', '/')}.py"
    for hook in by_line:
        assert hook.file == names[hook.changes].file


@pytest.mark.parametrize("release", [0, 1, 2])
def test_a_file_with_the_hooks_is_upstreams_and_their_lines(series: MadeUpSeries, release: int) -> None:
    changed = {hook.changes for hook in series.hooks}
    for file in series.files:
        lines = series.content(file, release).decode().split("\n")
        own = [hook.line for hook in series.hooks if hook.file == file and hook.name not in changed]
        assert sorted(line for line in lines if "made_up" in line.lower()) == sorted(own)
        upstream = "\n".join(line for line in lines if "made_up" not in line.lower()).encode()
        assert upstream == series.sources[release].read(file)
        compile("\n".join(lines), file, "exec")


def test_without_a_hook_the_line_that_it_changes_is_as_it_was(series: MadeUpSeries) -> None:
    hook = next(hook for hook in series.hooks if hook.changes)
    changed = next(other for other in series.hooks if other.name == hook.changes)
    lines = series.content(hook.file, 1, without={hook.name}).decode().split("\n")
    assert changed.line in lines
    assert hook.line not in lines


def test_the_patches_make_of_each_file_what_it_must_be(series: MadeUpSeries, tmp_path: Path) -> None:
    for number, hook in enumerate(series.hooks):
        (tmp_path / "mail.patch").write_text(series.mail(number))
        (patch,) = read_patches(tmp_path / "mail.patch")
        (change,) = patch.files
        assert (patch.name, change.name, patch.header["Remove-When"]) == (hook.name, hook.file, "never")
        (diff,) = PatchSet.from_string(change.diff)
        assert apply_as_stated(series.content(hook.file, 0, number), diff) == series.content(hook.file, 0, number + 1)


def test_changed_hooks_are_not_among_the_chained_ones(series: MadeUpSeries) -> None:
    before = [dataclasses.replace(hook) for hook in series.hooks]
    changed = series.change(3, 1)
    assert [hook for hook in series.hooks if hook not in before] == changed
    assert len(changed) == 3
    assert not {hook.name for hook in changed} & {hook.changes for hook in series.hooks}


def test_the_outcomes_of_hooks_are_read_from_the_table_of_port() -> None:
    table = """\
Fetch sglang-1.2-py3-none-any.whl ... done (0.20 s)
  hook    place               outcome      what was found
  choose  sglang/loader.py:7  offset 2     get_model unchanged
  early                       waits        for choose
  choose  sglang/engine.py:1  conflict     the lines  that it changes have changed
  choose  sglang/loader.py:9  offset -13   get_model unchanged
  last    sglang/engine.py    target gone  function step is gone
in all: 2 offset, 1 waits
  later   sglang/loader.py:7  exact        no row
"""
    ended = Ended(error="", output=table, seconds=1, cpu=1)
    first, second = ("choose", "offset"), ("choose", "conflict")
    assert ended.outcomes == [first, ("early", "waits"), second, first, ("last", "target gone")]
    assert Ended(error="it failed", output="Fetch ... failed\n", seconds=1, cpu=1).outcomes == []
