from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from overlay_tools.archive.mode import Executable
from overlay_tools.archive.reader import WheelReader
from overlay_tools.downstream.diff import make_diff
from overlay_tools.errors import PatchError
from overlay_tools.patches.apply import apply_series
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.model import Patch
from overlay_tools.patches.patch_file import load_patch
from overlay_tools.patches.relocate import RelocatedPatch, applies_unchanged, relocate
from overlay_tools.upstream.source_tree import SourceTree

from unit.conftest import HEADER, LOADER, TAG, upstream_files, write_wheel

OLD, NEW = "sglang/loader.py", "sglang/new_loader.py"
TEXT, CHANGED = LOADER.encode(), LOADER.replace("return 3", "return 4").encode()
HOOKED = LOADER.replace("(config):\n", "(config):\n    config = choose(config)\n").encode()
BOTH = HOOKED.replace(b"return 3", b"return 4")
Files = Mapping[str, bytes | None]
Relocate = Callable[[Patch, bytes | None], RelocatedPatch]


@pytest.fixture
def hook_that(tmp_path: Path) -> Callable[..., Patch]:
    """Return what makes a hook of a file of upstream's and what becomes of it."""

    def make(after: bytes | None, *, to: str = OLD, before: bytes = TEXT) -> Patch:
        path = tmp_path / "1.0.patch"
        made = {OLD: None, to: after}
        path.write_text(HEADER + make_diff({OLD: before}, made, {} if to == OLD else {to: OLD}))
        return load_patch(path, "choose")

    return make


def apply(patch: Patch, files: Mapping[str, bytes]) -> Files:
    return apply_series([patch], files.get, "sglang 1.0")


def test_each_change_of_a_whole_file_is_applied(hook_that: Callable[..., Patch]) -> None:
    assert apply(hook_that(None), {OLD: TEXT}) == {OLD: None}
    assert apply(hook_that(TEXT, to=NEW), {OLD: TEXT}) == {OLD: None, NEW: TEXT}
    assert apply(hook_that(HOOKED, to=NEW), {OLD: CHANGED}) == {OLD: None, NEW: BOTH}
    assert apply(hook_that(Executable(TEXT)), {OLD: CHANGED}) == {OLD: Executable(CHANGED)}
    assert apply(hook_that(Executable(HOOKED), to=NEW), {OLD: TEXT}) == {OLD: None, NEW: Executable(HOOKED)}
    assert apply(hook_that(HOOKED), {OLD: Executable(TEXT)}) == {OLD: Executable(HOOKED)}  # as it was
    binary = bytes(range(256))
    assert apply(hook_that(binary, to=NEW, before=binary), {OLD: binary}) == {OLD: None, NEW: binary}


@pytest.mark.parametrize(
    ("after", "to", "files", "said", "hint"),
    [
        (None, OLD, {OLD: CHANGED}, "of sglang 1.0 has changed since the hook was made, which deletes it", "variant"),
        (TEXT, NEW, {OLD: CHANGED}, "of sglang 1.0 has changed since the hook was made, which renames it", "variant"),
        (None, OLD, {}, "sglang 1.0 has no sglang/loader.py to delete", "upstream"),
        (HOOKED, NEW, {NEW: HOOKED}, "no sglang/loader.py, and it has sglang/new_loader.py", "upstream"),
        (HOOKED, NEW, {OLD: TEXT, NEW: b""}, "sglang 1.0 has a file sglang/new_loader.py already", "another name"),
        (HOOKED, NEW, {}, "sglang 1.0 has no sglang/loader.py", "move the hook"),
        (HOOKED, NEW, {OLD: b"x"}, "the lines that the hunk expects are not in sglang/loader.py", "exactly"),
        (Executable(TEXT), OLD, {OLD: Executable(TEXT)}, "is executable already", "upstream"),
    ],
)
def test_what_is_not_as_the_hook_found_it_is_refused(
    hook_that: Callable[..., Patch], after: bytes | None, to: str, files: dict[str, bytes], said: str, hint: str
) -> None:
    with pytest.raises(PatchError) as caught:
        apply(hook_that(after, to=to), files)
    assert said in str(caught.value)
    assert "1.0.patch:" in str(caught.value) or after == HOOKED
    assert hint in caught.value.hint


@pytest.fixture
def moved(tmp_path: Path) -> Iterable[Callable[[Patch, Files], RelocatedPatch]]:
    """Return what follows a hook from a release that has the loader into one with other files."""
    with ExitStack() as stack:

        def tree(version: str, files: Files) -> HookedTree:
            held = {name: data for name, data in {**upstream_files(version), **files}.items() if data is not None}
            path = write_wheel(tmp_path / f"sglang-{version}-{TAG}.whl", held)
            return HookedTree(SourceTree(version, stack.enter_context(WheelReader(path))))

        def move(patch: Patch, files: Files) -> RelocatedPatch:
            old, new = tree("1.0", {}), tree("1.1", files)
            relocated = relocate(patch, old, new)
            assert applies_unchanged(patch, old, new) == relocated.settled
            if relocated.settled:
                assert apply_series([patch], new.read, "sglang 1.1") == relocated.files == relocated.marked
            return relocated

        yield move


def outcomes(placed: RelocatedPatch) -> list[str]:
    return [placement.outcome for placement in placed.placements]


@pytest.mark.parametrize(
    ("after", "to", "files", "found", "made"),
    [
        (None, OLD, {}, ["exact"], {OLD: None}),
        (None, OLD, {OLD: CHANGED}, ["conflict"], {OLD: None}),
        (None, OLD, {OLD: None}, ["upstream"], {}),
        (TEXT, NEW, {}, ["exact"], {OLD: None, NEW: TEXT}),
        (TEXT, NEW, {OLD: CHANGED}, ["conflict"], {OLD: None, NEW: CHANGED}),
        (TEXT, NEW, {OLD: None, NEW: TEXT}, ["upstream"], {}),
        (TEXT, NEW, {OLD: None}, ["target gone"], {}),
        (TEXT, NEW, {NEW: b"theirs"}, ["conflict"], {}),
        (HOOKED, NEW, {OLD: CHANGED}, ["exact", "exact"], {OLD: None, NEW: BOTH}),
        (HOOKED, NEW, {OLD: None, NEW: CHANGED}, ["upstream", "exact"], {NEW: BOTH}),
        (HOOKED, NEW, {NEW: b"theirs"}, ["conflict", "exact"], {OLD: HOOKED}),
        (Executable(TEXT), OLD, {OLD: CHANGED}, ["exact"], {OLD: Executable(CHANGED)}),
        (Executable(HOOKED), OLD, {}, ["exact", "exact"], {OLD: Executable(HOOKED)}),
        (Executable(TEXT), OLD, {OLD: None}, ["target gone"], {}),
        (Executable(TEXT), OLD, {OLD: Executable(TEXT)}, ["upstream"], {}),
        (
            Executable(HOOKED), NEW, {OLD: Executable(TEXT)},
            ["half-upstream", "exact"], {OLD: None, NEW: Executable(HOOKED)},
        ),
    ],
)  # fmt: skip
def test_each_change_of_a_whole_file_is_followed(
    hook_that: Callable[..., Patch],
    moved: Callable[[Patch, Files], RelocatedPatch],
    after: bytes | None,
    to: str,
    files: Files,
    found: list[str],
    made: Files,
) -> None:
    placed = moved(hook_that(after, to=to), files)
    assert (outcomes(placed), placed.files) == (found, made)
    assert all(placement.note and "1.0.patch:" in placement.where for placement in placed.placements)
    assert not placed.placements[0].proposed


def test_a_renamed_file_with_lines_that_changed_is_proposed_under_its_new_name(
    hook_that: Callable[..., Patch], moved: Callable[[Patch, Files], RelocatedPatch]
) -> None:
    placed = moved(hook_that(HOOKED, to=NEW), {OLD: TEXT.replace(b"    name = config.name\n", b"    name = 1\n")})
    assert outcomes(placed) == ["exact", "conflict"]
    assert placed.marked[OLD] is None
    assert b"<<<<<<< sglang 1.1" in (placed.marked[NEW] or b"")


def test_the_files_of_a_release_are_those_that_the_hooks_leave(
    hook_that: Callable[..., Patch], moved: Callable[[Patch, Files], RelocatedPatch], tmp_path: Path
) -> None:
    path = write_wheel(tmp_path / f"sglang-1.0-{TAG}.whl", upstream_files("1.0"))
    with WheelReader(path) as wheel:
        tree = HookedTree(SourceTree("1.0", wheel), {OLD: None, NEW: HOOKED})
        assert {*tree.sources.names} - {*tree.names} == {OLD}
        assert {*tree.names} - {*tree.sources.names} == {NEW}
        changed = tree.sources.changed(tree.touched)
        assert (changed.read(OLD), changed.tree(OLD), changed.holding("choose")) == (None, None, [NEW])
