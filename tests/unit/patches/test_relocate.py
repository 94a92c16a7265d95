from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from overlay_tools.archive.reader import WheelReader
from overlay_tools.downstream.diff import make_diff
from overlay_tools.errors import PatchError
from overlay_tools.patches.apply import apply_series
from overlay_tools.patches.code_spans import scope_of
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.moving_hunk import Placement
from overlay_tools.patches.patch_file import load_patch
from overlay_tools.patches.relocate import RelocatedPatch, relocate
from overlay_tools.upstream.source_tree import SourceTree

from unit.conftest import ENGINE, HEADER, TAG, upstream_files, write_wheel

FILE = "sglang/engine.py"
CHECK, BUILD = "    check(model, strict)\n", "    model = build(config)\n"
LOAD = ENGINE[ENGINE.index("def load") : ENGINE.index("\n\ndef unload")]
PUT = ENGINE[ENGINE.index("    def put") : ENGINE.index("\n\nclass Engine")]
STEP = ENGINE[ENGINE.index("    def step") : ENGINE.index("\n\ndef load")]
OURS = "    model = ours(model)\n"  # what the hook of most tests adds to `load`

Change = tuple[str, str]
Follow = Callable[[Mapping[str, str | bytes], Mapping[str, str | bytes], Mapping[str, str | bytes]], RelocatedPatch]


def content(files: Mapping[str, bytes | None], name: str) -> bytes:
    """Return a file that is there."""
    data = files[name]
    assert data is not None
    return data


def sub(text: str, *changes: Change) -> str:
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


HOOK: Change = (CHECK, CHECK + OURS)


def resolve(marked: bytes, side: str) -> bytes:
    """Settle every conflict by taking upstream's lines, or the hook's."""
    conflict = rb"^<{7} [^\n]*\n(?P<ours>.*?)(?:^\|{7} [^\n]*\n.*?)?^={7}\n(?P<theirs>.*?)^>{7} [^\n]*\n"
    return re.sub(conflict, rb"\g<" + side.encode() + rb">", marked, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def follow(tmp_path: Path) -> Iterable[Follow]:
    """Return what follows a hook, made of files before and after it, into a release that has other files."""
    with ExitStack() as stack:

        def tree(version: str, files: dict[str, bytes]) -> HookedTree:
            path = write_wheel(tmp_path / f"sglang-{version}-{TAG}.whl", upstream_files(version) | files)
            return HookedTree(SourceTree(version, stack.enter_context(WheelReader(path))))

        def follow(
            old: Mapping[str, str | bytes], hooked: Mapping[str, str | bytes], new: Mapping[str, str | bytes]
        ) -> RelocatedPatch:
            a, b, c = (
                {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
                for files in (old, hooked, new)
            )
            path = tmp_path / "1.0.patch"
            path.write_bytes(HEADER.encode() + make_diff(a, b).encode())
            placed = relocate(load_patch(path, "choose"), tree("1.0", a), tree("1.1", c))
            assert placed.files.keys() == placed.marked.keys()
            if not any(placement.settled for placement in placed.placements):
                # Whatever is proposed, all else is upstream's, to the byte.
                for name in placed.marked:
                    assert resolve(content(placed.marked, name), "ours") == c[name]
            return placed

        yield follow


def follow_one(follow: Follow, hook: Change | list[Change], *upstream: Change, old: str = ENGINE) -> RelocatedPatch:
    hooks = hook if isinstance(hook, list) else [hook]
    return follow({FILE: old}, {FILE: sub(old, *hooks)}, {FILE: sub(old, *upstream)})


def only(placed: RelocatedPatch) -> Placement:
    (placement,) = placed.placements
    return placement


@pytest.mark.parametrize(
    ("upstream", "outcome", "note"),
    [
        ([], "exact", "load unchanged"),
        ([("import os\n", "import os\nimport sys\n")], "offset 1", "load unchanged"),
        ([("    size = 4\n\n", "")], "offset -2", "load unchanged"),
        ([("def unload(model):", "def unload(model, now=True):")], "exact", "load unchanged"),
        ([("strict=True):\n", "strict=True, *, fast=False):\n    path = str(path)\n")], "offset 1", "+2/-1"),
        ([("strict=True):\n", "strict=True):\n    path = str(path)\n")], "offset 1", "load changed, +1/-0"),
    ],
)
def test_a_hunk_that_stands_in_its_function_is_settled(
    follow: Follow, upstream: list[Change], outcome: str, note: str
) -> None:
    placed = follow_one(follow, HOOK, *upstream)
    placement = only(placed)
    assert (placement.outcome, placement.file, placement.scope) == (outcome, FILE, "load")
    assert note in placement.note
    assert placed.settled
    assert placed.files == placed.marked == {FILE: sub(ENGINE, HOOK, *upstream).encode()}
    after = content(placed.files, FILE).decode().split("\n")
    assert after[placement.line - 1] == "    config = read(path)"


@pytest.mark.parametrize(
    "upstream",
    [
        [("    config = read(path)", "    config = read(path, strict)")],  # in the context
        [(CHECK, "    check(model)\n")],  # the line before
        [(CHECK, CHECK + "    log(model)\n")],  # another insertion at the place
        [("strict)\n    return model", "strict)\n    return model.eval()")],  # the line after
        [("    config = read(path)\n    model = build(config)\n", "    model = build(read(path))\n")],
        [("def load(path, strict=True):\n", "def load(path, strict=True, fast=False):\n    a()\n"), (BUILD, "")],
    ],
)
def test_where_lines_around_it_changed_a_merge_within_the_function_is_proposed(
    follow: Follow, upstream: list[Change]
) -> None:
    placed = follow_one(follow, HOOK, *upstream)
    placement = only(placed)
    assert (placement.outcome, placement.scope, placement.proposed) == ("conflict", "load", True)
    assert not placed.settled
    proposed = content(placed.files, FILE).decode()
    assert proposed.replace(OURS, "") == sub(ENGINE, *upstream)
    assert proposed.split("\n")[placement.line - 1] == OURS.rstrip()
    assert resolve(content(placed.marked, FILE), "theirs") == content(placed.files, FILE)
    assert f"<<<<<<< sglang 1.1\n=======\n{OURS}>>>>>>> choose\n" in content(placed.marked, FILE).decode()


def test_where_both_changed_the_same_lines_the_markers_show_all_three(follow: Follow) -> None:
    upstream = (CHECK, "    check(model, strict, config)\n")
    placed = follow_one(follow, (CHECK, "    check(model, False)\n"), upstream)
    assert (only(placed).outcome, only(placed).proposed) == ("conflict", True)
    assert "have changed" in only(placed).note
    assert content(placed.marked, FILE).decode() == sub(
        ENGINE,
        (
            CHECK,
            "<<<<<<< sglang 1.1\n    check(model, strict, config)\n||||||| sglang 1.0\n    check(model, strict)\n"
            "=======\n    check(model, False)\n>>>>>>> choose\n",
        ),
    )
    assert content(placed.marked, FILE).decode().split("\n")[only(placed).line - 1] == "<<<<<<< sglang 1.1"


def test_a_function_that_looks_like_its_own_is_not_taken_for_it(follow: Follow) -> None:
    # `put` has become what `get` was, where `get` has changed: fuzz and offset would go to `put`.
    get = "        entry = self.table[key]\n        self.hits += 1\n        return entry\n"
    placed = follow_one(
        follow,
        ("        self.hits += 1\n", "        self.hits += 1\n        entry = ours(entry)\n"),
        (get, get.replace("[key]", ".get(key)")),
        (PUT, "    def put(self, key):\n" + get),
    )
    placement = only(placed)
    assert (placement.outcome, placement.scope) == ("conflict", "Cache.get")
    assert scope_of(content(placed.files, FILE), placement.line) == "Cache.get"


@pytest.mark.parametrize(
    ("hook", "upstream"),
    [
        (HOOK, (CHECK, CHECK + OURS)),
        (HOOK, (BUILD, BUILD + OURS)),  # at another place of the function
        ((CHECK, ""), (CHECK, "")),
        ((CHECK, CHECK + "\n" + OURS), (CHECK, CHECK + OURS)),  # but for a blank line
    ],
)
def test_what_upstream_has_taken_is_said_to_be_upstream(follow: Follow, hook: Change, upstream: Change) -> None:
    placed = follow_one(follow, hook, upstream)
    assert (only(placed).outcome, only(placed).proposed) == ("upstream", False)
    assert "drop it" in only(placed).note
    assert not placed.settled
    assert placed.files == placed.marked == {}


def test_what_upstream_has_taken_in_part_is_said_to_be_half_upstream(follow: Follow) -> None:
    two = OURS + "    log(model)\n"
    placed = follow_one(follow, (CHECK, CHECK + two), (CHECK, CHECK + OURS))
    assert (only(placed).outcome, only(placed).proposed) == ("half-upstream", True)
    assert "50%" in only(placed).note
    assert b"<<<<<<< sglang 1.1\n" in content(placed.marked, FILE)


METHOD = "    def drop(self, key):\n        del self.table[key]\n\n"


@pytest.mark.parametrize(
    ("hook", "upstream", "found"),
    [
        # Each hunk's lines stand where they stood: without a look at what upstream has done, it would be applied again.
        (("    def put(", METHOD + "    def put("), ("    def get(", METHOD + "    def get("), "upstream"),
        (("    def put(", METHOD + "    def put("), ("    def get(", "    drop = None\n\n    def get("), "Cache.drop"),
        (
            ("    def put(", METHOD + "    def put("),
            ("class Cache:\n", "class Cache:\n    def drop(self, name, key=None):\n        pass\n\n"),
            "Cache.drop",
        ),
        (
            ("import os\n", "import os\nimport ours\n"),
            ("\n\nclass Engine", "\n\nimport ours as ours\n\n\nclass Engine"),
            "ours",
        ),
        (
            ("    size = 4\n", "    size = 4\n    limit = 2\n"),
            ("\n\nclass Engine", "\n    limit = 3\n\n\nclass Engine"),
            "Cache.limit",
        ),
        (
            ("def load(path", "def load(path, ours"),
            ("    return model\n", "    ours = 1\n    return model\n"),
            "load.ours",
        ),
        (
            ("        self.log(out)\n", "        self.log(out)\n        self.at = 1\n"),
            ("    def step(self, batch):\n", "    def step(self, batch):\n        self.at = now()\n"),
            "Engine.step.self.at",
        ),
        (
            ("    model.close()\n", "    model.close()\n    log(1)\n    log(2)\n    log(3)\n"),
            ("def unload(model):\n", "def unload(model):\n    log(1)\n    log(3)\n    start()\n"),
            "67%",
        ),
        (
            ("import os\n", "import os\nlog(1)\nlog(2)\nlog(3)\n"),
            ("    return None\n", "    return None\n\n\nlog(1)\nlog(3)\n"),
            "67%",
        ),
    ],
)  # fmt: skip
def test_what_stands_unchanged_is_not_settled_where_upstream_has_added_it_too(
    follow: Follow, hook: Change, upstream: Change, found: str
) -> None:
    placed = follow_one(follow, hook, upstream)
    assert not placed.settled
    if found != "upstream":
        assert (only(placed).outcome, only(placed).proposed) == ("half-upstream", True)
        assert found in only(placed).note
        assert content(placed.files, FILE).decode() == sub(ENGINE, hook, upstream)
    else:
        assert only(placed).outcome == "upstream"


def test_a_name_that_upstream_had_before_or_added_elsewhere_is_the_hooks_to_use(follow: Follow) -> None:
    again = (CHECK, CHECK + "    config = ours(config)\n    model = ours(model)\n")
    assert only(follow_one(follow, again)).outcome == "exact"
    other = ("    def step(", "    def drop(self):\n        pass\n\n    def step(")
    assert only(follow_one(follow, ("    def put(", METHOD + "    def put("), other)).outcome == "exact"


LAST_LINE = "    return None\n"
FINISH = "\n\ndef finish():\n    pass\n"


@pytest.mark.parametrize(
    ("hook", "upstream"),
    [
        ((LAST_LINE, LAST_LINE + FINISH), (LAST_LINE, LAST_LINE + "\n\ndef more():\n    return 1\n")),
        ((LAST_LINE, "    return None  # ours\n"), (LAST_LINE, LAST_LINE + "\n\nmore = 1\n")),
        (("import os\n", "import ours\nimport os\n"), ("import os\n", '"""More."""\n\nimport os\n')),
    ],
)
def test_what_was_made_at_an_end_of_a_file_is_proposed_where_that_has_moved(
    follow: Follow, hook: Change, upstream: Change
) -> None:
    assert only(follow_one(follow, hook)).outcome == "exact"
    placed = follow_one(follow, hook, upstream)
    assert (only(placed).outcome, only(placed).proposed) == ("conflict", True)
    with pytest.raises(PatchError, match=r"the lines that the hunk expects at the (end|beginning) of the file stand"):
        apply_series([placed.patch], {FILE: sub(ENGINE, upstream).encode()}.get, "sglang 1.1")


@pytest.mark.parametrize(
    ("old", "hooked", "new", "outcome"),
    [
        ("", "import os\n", "", "exact"),
        ("", "import os\n", "import re\n", "conflict"),
        ("import os\n", "", "import os\n", "exact"),
        ("import os\n", "", "import os\nimport re\n", "conflict"),
        ("a = 1", "a = 1\n", "a = 1", "exact"),
        ("a = 1", "a = 1\n", "a = 1\n", "conflict"),
        ("b\na = 1\n", "b\na = 1", "# more\n\n\nb\na = 1\n", "offset 3"),
        ("", "import os\n", None, "target gone"),
    ],
)
def test_an_empty_file_and_a_last_line_without_an_end_have_their_place(
    follow: Follow, old: str, hooked: str, new: str | None, outcome: str
) -> None:
    placed = follow({FILE: old}, {FILE: hooked}, {} if new is None else {FILE: new})
    assert only(placed).outcome == outcome


def test_what_is_settled_is_what_applies(follow: Follow) -> None:
    draw, settled = random.Random(5), 0
    lines = ["a = 1\n", "b = 2\n", "\n", "call()\n"]

    def changed(text: list[str]) -> list[str]:
        at = draw.randrange(len(text) + 1)
        return [*text[:at], *draw.choices(lines, k=draw.randrange(3)), *text[at + draw.randrange(2) :]]

    for _ in range(100):
        old = draw.choices(lines, k=draw.randrange(12))
        before, hooked, new = ("".join(text) for text in (old, changed(old), changed(changed(old))))
        if hooked == before:
            continue
        placed = follow({FILE: before}, {FILE: hooked}, {FILE: new})
        if placed.settled:
            settled += 1
            assert apply_series([placed.patch], {FILE: new.encode()}.get, "sglang 1.1") == placed.files
    assert settled > 5


def test_the_same_line_elsewhere_in_the_file_is_not_taken_for_upstreams(follow: Follow) -> None:
    placed = follow_one(
        follow, HOOK, ("    model.close()\n", OURS + "    model.close()\n"), (CHECK, "    check(model)\n")
    )
    assert only(placed).outcome == "conflict"


def test_a_line_that_the_function_had_before_is_not_taken_for_upstreams(follow: Follow) -> None:
    again = (BUILD, BUILD + CHECK)
    placed = follow_one(follow, again, ("    config = read(path)", "    config = read(path, strict)"))
    assert only(placed).outcome == "conflict"
    old = sub(ENGINE, (BUILD, BUILD + CHECK + BUILD))
    placed = follow_one(follow, (BUILD + CHECK + BUILD, BUILD + BUILD), (BUILD + CHECK + BUILD, BUILD + BUILD), old=old)
    assert only(placed).outcome == "upstream"


def test_a_block_that_fits_twice_is_proposed_in_its_function(follow: Follow) -> None:
    placed = follow_one(
        follow, HOOK, ("def unload(model):\n", LOAD.replace("load", "reload") + "\n\ndef unload(model):\n")
    )
    placement = only(placed)
    assert (placement.outcome, placement.scope, placement.line) == ("conflict", "load", 31)
    assert "fits at lines 31, 38" in placement.note
    assert scope_of(content(placed.files, FILE), 34) == "load"
    assert content(placed.files, FILE).decode().split("\n")[33] == OURS.rstrip()


def test_a_block_that_fits_twice_in_its_function_is_not_settled(follow: Follow) -> None:
    body = LOAD.partition("\n")[2]
    placed = follow_one(
        follow, HOOK, (LOAD, LOAD.replace("    return model\n", "    return model\n\n\n") + body + "\n\n")
    )
    assert only(placed).outcome == "conflict"
    assert not placed.settled


RENAMED = LOAD.replace("def load(", "def open_model(")
WITHOUT, LAST = sub(ENGINE, (LOAD, "")), "\n\nlast = 1\n"
CHANGED = RENAMED.replace("check(model, strict)", "check(model)")


@pytest.mark.parametrize(
    ("new", "file", "scope", "note"),
    [
        ({FILE: sub(ENGINE, (LOAD, RENAMED))}, FILE, "open_model", "from load"),
        ({FILE: sub(ENGINE, (LOAD, CHANGED))}, FILE, "open_model", f"from {FILE}, load"),
        ({FILE: WITHOUT, "sglang/io.py": LOAD + LAST}, "sglang/io.py", "load", f"from {FILE}"),
        ({FILE: WITHOUT, "sglang/io.py": RENAMED + LAST}, "sglang/io.py", "open_model", f"from {FILE}"),
        ({"sglang/io.py": "# new\n" + ENGINE}, "sglang/io.py", "load", f"from {FILE}, which is gone"),
        (
            {"sglang/io.py": sub(ENGINE, (CHECK, "    check(model)\n"))},
            "sglang/io.py", "load", f"from {FILE}, load",
        ),
        (
            {FILE: sub(ENGINE, (LOAD, "class Loader:\n" + "".join(f"    {line}\n" for line in LOAD.splitlines())))},
            FILE, "Loader.load", f"from {FILE}, load",
        ),
    ],
)  # fmt: skip
def test_what_has_moved_is_proposed_where_it_is_now(
    follow: Follow, new: dict[str, str], file: str, scope: str, note: str
) -> None:
    placed = follow({FILE: ENGINE}, {FILE: sub(ENGINE, HOOK)}, new)
    placement = only(placed)
    assert (placement.outcome, placement.file, placement.scope, placement.note) == ("moved", file, scope, note)
    assert placement.proposed
    assert placed.files.keys() == {file}
    proposed = content(placed.files, file).decode()
    assert re.sub(r" *model = ours\(model\)\n", "", proposed) == new[file]
    assert resolve(content(placed.marked, file), "theirs") == content(placed.files, file)
    line = next(n for n, text in enumerate(proposed.split("\n"), 1) if text.strip() == OURS.strip())
    assert scope_of(content(placed.files, file), line) == scope
    assert placement.line <= line


def test_a_function_that_became_a_method_takes_its_indentation(follow: Follow) -> None:
    load = LOAD.replace("    check", "\n    check")
    method = re.sub("(?m)^(?=.)", "    ", load).replace("def load(path", "def load(self, path")
    new = sub(ENGINE, ("def load", "class Loader:\n" + method + "\n\ndef load"), (LOAD, ""))
    hook = (CHECK, f"{CHECK}\n{OURS}")
    placed = follow({FILE: sub(ENGINE, (LOAD, load))}, {FILE: sub(ENGINE, (LOAD, load), hook)}, {FILE: new})
    assert (only(placed).outcome, only(placed).scope) == ("moved", "Loader.load")
    assert content(placed.files, FILE).decode() == sub(new, ("    " + CHECK, f"    {CHECK}\n    {OURS}"))


def test_a_method_that_became_a_function_takes_its_indentation(follow: Follow) -> None:
    text = '        text = """\nat the margin\n"""\n'
    old = sub(ENGINE, ("        self.log(out)\n", text + "        self.log(out)\n"))
    step = STEP.replace("        self.log(out)\n", text + "        self.log(out)\n")
    function = re.sub("(?m)^    ", "", step).replace("self.log(out)", "self.log(out, text)")
    new = sub(old, (step, ""), ("def load", function + "\n\ndef load"))
    count = "        self.count += 1\n"
    placed = follow({FILE: old}, {FILE: sub(old, (count, count + "        out = ours(out)\n"))}, {FILE: new})
    assert (only(placed).outcome, only(placed).scope) == ("moved", "step")
    assert content(placed.files, FILE).decode() == sub(
        new, ("    self.count += 1\n", "    self.count += 1\n    out = ours(out)\n")
    )


@pytest.mark.parametrize(
    ("new", "note"),
    [
        ({FILE: WITHOUT}, "function load is gone"),
        (
            {FILE: sub(ENGINE, (LOAD, "def load_all(paths):\n    for path in paths:\n        yield path\n"))},
            "load is gone",
        ),
        ({}, f"{FILE} is gone"),
        ({"sglang/io.py": "def load(other):\n    return nothing_alike\n"}, f"{FILE} is gone"),
        (
            {"sglang/io.py": LOAD.replace(CHECK, "    inspect(model)\n").replace("return model", "return model, None")},
            f"{FILE} is gone",
        ),
        ({"sglang/io.py": LOAD + "".join(f"    also({n})\n" for n in range(20))}, f"{FILE} is gone"),
    ],
)
@pytest.mark.parametrize("hook", [HOOK, (CHECK, "")])
def test_without_a_place_the_target_is_gone(follow: Follow, new: dict[str, str], note: str, hook: Change) -> None:
    placed = follow({FILE: ENGINE}, {FILE: sub(ENGINE, hook)}, new)
    assert (only(placed).outcome, only(placed).proposed, only(placed).line) == ("target gone", False, 0)
    assert note in only(placed).note
    assert placed.files == {}


def test_a_function_that_was_there_before_is_not_taken_for_its_own_renamed(follow: Follow) -> None:
    old = ENGINE + "\n\n" + CHANGED
    placed = follow_one(follow, [HOOK], (LOAD, ""), old=old)
    assert (only(placed).outcome, only(placed).note) == ("target gone", "function load is gone")


def test_two_places_in_other_files_are_not_a_place(follow: Follow) -> None:
    placed = follow(
        {FILE: ENGINE}, {FILE: sub(ENGINE, HOOK)}, {"sglang/a.py": "x = 1\n" + LOAD + LAST, "sglang/b.py": LOAD + LAST}
    )
    # Neither stands for the lines; a function that is like the old one is shown.
    assert (only(placed).outcome, only(placed).note) == ("moved", f"from {FILE}, load")
    assert not placed.settled


TWIN = {"sglang/twin.py": RENAMED + LAST}  # the same lines in a function of another name, before and after


@pytest.mark.parametrize(
    ("new", "outcome", "file"),
    [
        (TWIN, "target gone", FILE),
        ({"sglang/renamed.py": RENAMED + LAST}, "target gone", FILE),
        ({"sglang/twin.py": RENAMED.replace("open_model", "open_any") + LAST}, "target gone", FILE),
        (TWIN | {"sglang/io.py": LOAD + LAST}, "moved", "sglang/io.py"),
    ],
    ids=["stays", "another file", "another function", "beside the one that has moved"],
)
def test_lines_that_stood_elsewhere_before_are_not_where_these_have_moved(
    follow: Follow, new: dict[str, str], outcome: str, file: str
) -> None:
    placed = follow({FILE: ENGINE} | TWIN, {FILE: sub(ENGINE, HOOK)} | TWIN, {FILE: WITHOUT} | new)
    assert (only(placed).outcome, only(placed).file) == (outcome, file)


def test_every_hunk_of_a_file_has_its_own_outcome(follow: Follow) -> None:
    hooks = [
        ("    size = 4\n", "    size = 4\n    ours = True\n"),
        ("        self.table[key] = entry\n", "        self.table[key] = ours(entry)\n"),
        ("        self.count += 1\n", "        self.count += 1\n        out = ours(out)\n"),
        ("    model.close()\n", "    model.close()\n    ours.close()\n"),
    ]
    upstream = [
        ("        self.table[key] = entry\n", "        self.table.put(key, entry)\n"),
        (STEP, "    pass\n"),
        ("    return None", "    return model"),
    ]
    placed = follow_one(follow, hooks, *upstream)
    assert [placement.outcome for placement in placed.placements] == ["exact", "conflict", "target gone", "conflict"]
    assert [placement.scope for placement in placed.placements] == ["Cache", "Cache.put", "Engine.step", "unload"]
    assert not placed.settled
    one, two, _, four = placed.placements
    shown = content(placed.files, FILE).decode().split("\n")
    assert shown[one.line + 2] == "    ours = True"
    assert shown[two.line - 1] == "        self.table.put(key, entry)"
    assert shown[four.line - 1] == "    ours.close()"
    # What is open is marked, and what is settled is done.
    marked = content(placed.marked, FILE)
    assert marked.count(b"<<<<<<< ") == marked.count(b">>>>>>> ") == 2
    assert resolve(marked, "ours").decode() == sub(ENGINE, *upstream, hooks[0])


def test_a_hunk_after_others_is_exact_where_they_put_it(follow: Follow) -> None:
    hooks = [("        self.hits += 1\n", "        self.hits += 1\n        self.note(key)\n"), HOOK]
    placed = follow_one(follow, hooks)
    assert [placement.outcome for placement in placed.placements] == ["exact", "exact"]
    placed = follow_one(follow, hooks, ("    def step(", "\n    def step("))
    assert [placement.outcome for placement in placed.placements] == ["exact", "offset 1"]
    # A proposal before it counts with the lines that it adds, not with its markers.
    placed = follow_one(follow, hooks, ("        entry = self.table[key]\n", "        entry = self.table.get(key)\n"))
    assert [placement.outcome for placement in placed.placements] == ["conflict", "exact"]


def test_a_note_counts_the_lines_of_upstream_alone(follow: Follow) -> None:
    body = "    config = read(path)\n" + "".join(f"    step({n})\n" for n in range(12)) + BUILD
    old = sub(ENGINE, ("    config = read(path)\n" + BUILD, body))
    hooks = [("    step(0)\n", "    step(0)\n    ours(0)\n"), HOOK]
    placed = follow_one(follow, hooks, ("    step(1)\n", "    step(1, True)\n"), old=old)
    assert [(p.outcome, p.note) for p in placed.placements] == [
        ("conflict", "lines around it changed; merged within the function"),
        ("exact", "load changed, +1/-1"),
    ]


def test_each_of_several_hunks_merged_into_one_function_has_its_own_line(follow: Follow) -> None:
    body = "    config = read(path)\n" + "".join(f"    step({n})\n" for n in range(12)) + BUILD
    old = sub(ENGINE, ("    config = read(path)\n" + BUILD, body))
    hooks = [("    step(0)\n", "    step(0)\n    ours(0)\n"), HOOK]
    upstream = [("    step(1)\n", "    step(1, True)\n"), (BUILD, "    model = build(config, path)\n")]
    placed = follow_one(follow, hooks, *upstream, old=old)
    shown = content(placed.files, FILE).decode().split("\n")
    assert [shown[placement.line - 1] for placement in placed.placements] == ["    ours(0)", OURS.rstrip()]
    assert content(placed.marked, FILE).count(b"<<<<<<< ") == 2


def test_hunks_that_git_merges_into_one_conflict_are_one_region(follow: Follow) -> None:
    steps = [f"    step({n})\n" for n in range(12)]
    old = sub(ENGINE, (BUILD, BUILD + "".join(steps)))
    hooks = [(steps[1], "    ours(1)\n"), (steps[10], "    ours(10)\n")]
    upstream = (BUILD + "".join(steps), BUILD + "".join(f"    stride({n})\n" for n in range(12)))
    placed = follow_one(follow, hooks, upstream, old=old)
    assert [placement.outcome for placement in placed.placements] == ["conflict", "conflict"]
    # Upstream's lines, then both hunks; the first is not shown as if the old release had it.
    theirs = "".join(steps).replace("step(1)", "ours(1)").replace("step(10)", "ours(10)")
    assert content(placed.marked, FILE).decode() == sub(
        old,
        ("".join(steps), f"<<<<<<< sglang 1.1\n{upstream[1].removeprefix(BUILD)}=======\n{theirs}>>>>>>> choose\n"),
    )


def test_the_hooks_before_it_are_part_of_both_releases(follow: Follow, tmp_path: Path) -> None:
    with WheelReader(
        write_wheel(tmp_path / f"sglang-2.0-{TAG}.whl", upstream_files("2.0") | {FILE: ENGINE.encode()})
    ) as wheel:
        before = sub(ENGINE, HOOK)
        path = tmp_path / "1.0.patch"
        diff = make_diff({FILE: before.encode()}, {FILE: sub(before, (OURS, OURS + "    log(model)\n")).encode()})
        path.write_text(HEADER + diff)
        tree = HookedTree(SourceTree("2.0", wheel), {FILE: before.encode()})
        assert relocate(load_patch(path, "choose"), tree, tree).settled
        assert only(relocate(load_patch(path, "choose"), tree, HookedTree(tree.sources))).outcome == "conflict"


@pytest.mark.parametrize(
    ("hook", "scope", "near"),
    [
        (("import os\n", "import os\nimport ours\n"), "", "class Cache:"),
        (("    size = 4\n", "    size = 4\n    ours = True\n"), "Cache", "    def get(self, key):"),
        (('        return "engine"\n', '        return "ours"\n'), "Engine.name", "class Engine:"),
        (("    @property\n", "    @cached\n    @property\n"), "Engine.name", "    def name(self):"),
        (("    @property\n", ""), "Engine.name", '        return "engine"'),
        (("def load(path, strict=True)", "def load(path, strict=False)"), "load", "    model = build(config)"),
        (("def load(", "def ours():\n    pass\n\n\ndef load("), "", "def load(path, strict=True):"),
        (
            ("    def put(", "    def ours(self):\n        pass\n\n    def put("),
            "Cache",
            "    def put(self, key, value):",
        ),
        (("    return None\n", "    return None\n\n\ndef last():\n    pass\n"), "", "    return None"),
        ((CHECK, CHECK + "    def ours():\n        pass\n\n"), "load", "    config = read(path)"),
    ],
)
def test_a_hunk_belongs_to_the_innermost_function_or_class_that_was_there(
    follow: Follow, hook: Change, scope: str, near: str
) -> None:
    placed = follow_one(follow, hook)
    assert (only(placed).outcome, only(placed).scope) == ("exact", scope)
    note = f"{scope} unchanged" if scope else "top level of the file"
    assert only(placed).note == note
    # Where a line near it changed, it is proposed in the same.
    changed = follow_one(follow, hook, (near, f"{near}  # changed"))
    assert (only(changed).outcome, only(changed).scope) == ("conflict", scope)
    assert content(changed.files, FILE).decode() == sub(sub(ENGINE, hook), (near, f"{near}  # changed"))


def test_a_hunk_across_two_functions_is_proposed_whole(follow: Follow) -> None:
    hook = (
        "    return model\n\n\ndef unload(model):\n",
        "    return ours(model)\n\n\ndef unload(model):\n    ours.stop()\n",
    )
    placed = follow_one(follow, hook)
    assert (only(placed).outcome, only(placed).scope) == ("exact", "")
    near = ("    model = build(config)\n", "    model = build(config, path)\n")
    placed = follow_one(follow, hook, near)
    assert only(placed).outcome == "conflict"
    assert content(placed.files, FILE).decode() == sub(ENGINE, hook, near)
    method = (
        "        return entry\n\n    def put(self, key, value):\n",
        "        return 0\n\n    def put(self, key, value):\n        pass\n",
    )
    assert only(follow_one(follow, method)).scope == "Cache"
    moved = (CHECK + "    return model\n\n\ndef unload(model):\n", "    return model\n\n\ndef unload(model):\n" + OURS)
    assert only(follow_one(follow, moved)).scope == ""


def test_blank_lines_and_a_decorator_belong_to_the_function(follow: Follow) -> None:
    placed = follow_one(follow, ("def load(", "\n@cached\ndef load("))
    assert (only(placed).outcome, only(placed).scope) == ("exact", "load")
    assert only(follow_one(follow, ("    return model\n", "    ours(model)\n    return model\n\n"))).scope == "load"
    assert only(follow_one(follow, (CHECK, "\n" + CHECK))).scope == "load"


def test_the_second_of_two_functions_of_one_name_is_its_own(follow: Follow) -> None:
    setter = "    @name.setter\n    def name(self, value):\n        self.log(value)\n        self.title = value\n\n"
    old = sub(ENGINE, ("    def step(", setter + "    def step("))
    hook = ("        self.title = value\n", "        self.title = ours(value)\n")
    placed = follow_one(follow, hook, old=old)
    assert (only(placed).outcome, only(placed).scope) == ("exact", "Engine.name#2")
    placed = follow_one(follow, hook, ("        self.log(value)\n", "        self.log(value, 1)\n"), old=old)
    assert (only(placed).outcome, only(placed).scope) == ("conflict", "Engine.name#2")
    assert scope_of(content(placed.files, FILE), only(placed).line) == "Engine.name#2"


@pytest.mark.parametrize(
    ("new", "outcome"),
    [
        ('{\n  "a": 1,\n  "b": 2,\n  "c": 3\n}\n', "exact"),
        ('{\n  "z": 0,\n  "a": 1,\n  "b": 2,\n  "c": 3\n}\n', "conflict"),
        ('{\n  "a": 1,\n  "ours": 1,\n  "b": 2,\n  "c": 3\n}\n', "upstream"),
        (None, "target gone"),
    ],
)
def test_a_file_that_is_not_python_is_one_scope(follow: Follow, new: str | None, outcome: str) -> None:
    old = '{\n  "a": 1,\n  "b": 2,\n  "c": 3\n}\n'
    name = "sglang/config.json"
    placed = follow({name: old}, {name: sub(old, ('  "b"', '  "ours": 1,\n  "b"'))}, {} if new is None else {name: new})
    assert (only(placed).outcome, only(placed).scope) == (outcome, "")


@pytest.mark.parametrize("upstream", [[], [("    config = read(path)", "    config = read(path, strict)")]])
@pytest.mark.parametrize(
    ("encode", "ends"),
    [
        (lambda text: b"# -*- coding: latin-1 -*-\nNAME = '\xfc\xe4'  # \xdc\n" + text.encode(), "\n"),
        (lambda text: b"# \xff is not UTF-8, so this cannot be read as Python\n" + text.encode(), "\n"),
        (lambda text: text.replace("\n", "\r\n").encode(), "\r\n"),
        (lambda text: ("x = '\u2028\x0c'\n" + text + "last = 'no line end'").encode(), "\n"),
        (lambda text: text.replace("    def put", "    \n    def put").encode(), "\n"),
    ],
)
def test_bytes_that_are_not_the_hooks_stay_as_they_are(
    follow: Follow, encode: Callable[[str], bytes], ends: str, upstream: list[Change]
) -> None:
    hooked, new = sub(ENGINE, HOOK), sub(ENGINE, *upstream)
    placed = follow({FILE: encode(ENGINE)}, {FILE: encode(hooked)}, {FILE: encode(new)})
    assert only(placed).outcome == ("conflict" if upstream else "exact")
    assert content(placed.files, FILE) == encode(sub(new, HOOK))
    assert content(placed.marked, FILE).count(OURS.rstrip("\n").encode() + ends.encode()) == 1


def test_text_at_the_margin_of_a_method_stays_there(follow: Follow) -> None:
    text = '        text = """\nat the margin\n    \n"""\n        self.log(text)\n'
    old = sub(ENGINE, ("        self.log(out)\n", text))
    count = "        self.count += 1\n"
    for model in ("self.model(batch, 1)", "self.model(\n            batch\n        )"):
        new = ("        out = self.model(batch)\n", f"        out = {model}\n")
        clean = follow_one(follow, (count, count + "        out = ours(out)\n"), new, old=old)
        assert content(clean.files, FILE).decode() == sub(old, new, (count, count + "        out = ours(out)\n"))
        both = follow_one(follow, ("        out = self.model(batch)\n", "        out = ours(batch)\n"), new, old=old)
        assert resolve(content(both.marked, FILE), "theirs").decode() == sub(
            old, (new[0], "        out = ours(batch)\n")
        )


def test_a_row_of_signs_is_not_taken_for_a_marker_of_the_merge(follow: Follow) -> None:
    text = '    """\n{}\n' + "=" * 50 + "\n" + "<" * 50 + '\n    """\n    config = read(path)\n'
    old = sub(ENGINE, ("    config = read(path)\n", text.format("Title")))
    placed = follow_one(
        follow,
        ("\nTitle\n" + "=" * 50, "\nOurs\n" + "=" * 40),
        ("\nTitle\n" + "=" * 50, "\nA title\n" + "=" * 60),
        old=old,
    )
    assert only(placed).outcome == "conflict"
    assert resolve(content(placed.marked, FILE), "theirs").decode() == sub(
        old, ("\nTitle\n" + "=" * 50, "\nOurs\n" + "=" * 40)
    )


def test_the_scope_of_a_line() -> None:
    lines = [(n, scope_of(ENGINE.encode(), n)) for n in (1, 5, 7, 9, 17, 18, 19, 20, 29, 30, 34, 35, 38, 99)]
    assert lines == [
        (1, ""), (5, "Cache"), (7, "Cache.get"), (9, "Cache.get"), (17, ""), (18, "Engine"), (19, "Engine.name"),
        (20, "Engine.name"), (29, ""), (30, "load"), (34, "load"), (35, ""), (38, "unload"), (99, ""),
    ]  # fmt: skip
    assert scope_of(b"def no python(:\n    x\n", 2) == ""
