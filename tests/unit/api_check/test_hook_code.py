from __future__ import annotations

import textwrap

import pytest
from overlay_tools.downstream.diff import make_diff
from overlay_tools.errors import PatchError

from unit.api_check.derived import UPSTREAM, check, misfits
from unit.conftest import HEADER, PATCH, Miniature


def test_the_lines_of_a_hook_must_fit_the_overlay(ours: Miniature) -> None:
    lines = "+    from sglang.srt import overlay_registry\n+\n"
    lines += "+    if found := overlay_registry.choose(config):\n+        return found\n"
    patch = PATCH.replace("+    config = choose(config)\n", lines).replace("-3,5 +3,6", "-3,5 +3,9")
    ours.patch.write_text(patch)
    assert misfits(check(ours)) == []
    ours.patch.write_text(patch.replace("choose(config)", "choose(config, 1)"))
    (found,) = [item for item in check(ours) if item.problem]
    assert (found.where, found.kind) == ("patches/choose/1.0.patch:16", "call")
    assert "too many positional arguments" in found.problem
    ours.patch.write_text(patch.replace("registry.choose", "registry.chose"))
    assert misfits(check(ours)) == [
        "attribute get_model: overlay_registry.chose: sglang.srt.overlay_registry has no `chose`; now `choose`?"
    ]


def test_a_hook_is_checked_in_the_releases_that_take_it(ours: Miniature) -> None:
    lines = "+    from sglang.srt import registry\n"
    ours.patch.write_text(PATCH.replace("+    config = choose(config)\n", lines))
    assert misfits(check(ours)) == ["import sglang.srt.registry: sglang.srt has no `registry`"]
    ours.write("patches/series", "choose <=1.1\n")
    assert misfits(check(ours, version="1.2")) == []


def test_a_hook_that_leaves_no_python_is_named(ours: Miniature) -> None:
    ours.patch.write_text(PATCH.replace("+    config = choose(config)\n", "+    config=(\n"))
    with pytest.raises(
        PatchError, match=r"sglang/loader\.py of sglang 1\.0 with the hooks applied: '\(' was never closed"
    ):
        check(ours)


ROUTER = "sglang/srt/layers/router.py"
TAKES = UPSTREAM[ROUTER].replace("bias=None):", "bias=None, extra=False):")
MODELS = "sglang/srt/models/base.py"
PASSES = UPSTREAM[MODELS].replace("Router(config.top_k)", "Router(\n            config.top_k, extra=True)")


def add_hook(ours: Miniature, name: str, path: str, text: str) -> None:
    """Add a hook that makes a file of UPSTREAM's what `text` says."""
    before, after = ({path: textwrap.dedent(side)} for side in (UPSTREAM[path], text))
    ours.add_hook(name, before, after, ">=1.0,<=1.1")


def test_a_hook_may_need_what_another_hook_brings(ours: Miniature) -> None:
    add_hook(ours, "takes", ROUTER, TAKES)
    add_hook(ours, "passes", MODELS, PASSES)
    assert misfits(check(ours)) == []


def test_what_a_hook_passes_and_no_function_takes_is_a_problem(ours: Miniature) -> None:
    add_hook(ours, "passes", MODELS, PASSES)
    (found,) = [item for item in check(ours) if item.problem]
    assert found.kind == "call"
    assert found.where.startswith("patches/passes/1.0.patch:")
    assert "unexpected keyword argument 'extra'" in found.problem
    assert found.what == "Block.__init__: Router()"


def test_what_a_hook_brings_is_there_for_the_overlay(ours: Miniature) -> None:
    path = "sglang/srt/layers/head.py"
    add_hook(ours, "brings", path, UPSTREAM[path] + "SHIFT = 2\n")
    ours.write("overlay/sglang/srt/models/other.py", "from sglang.srt.layers.head import SHIFT\nEntryClass = SHIFT\n")
    assert misfits(check(ours)) == []


def test_upstream_s_own_code_around_a_hook_is_left_to_upstream(ours: Miniature) -> None:
    broken = textwrap.dedent(UPSTREAM[MODELS] + "\n\n        def unused():\n            return Router()\n")
    after = broken.replace("self.config = config", "self.config = config  # ours")
    ours.add_hook("comment", {MODELS: broken}, {MODELS: after}, ">=1.0,<=1.1")
    assert misfits(check(ours, {MODELS: broken})) == []


MAY_BE_THERE = """

def touch(block: Block):
    return block.anything


class Mixin:
    @classmethod
    def make(cls):
        return cls.other()


X = BaseForCausalLM.from_elsewhere
"""  # of an object, of a class that uses the mixin, of a base outside sglang


def test_what_upstream_s_classes_may_get_elsewhere_is_not_missed(ours: Miniature) -> None:
    before = textwrap.dedent(UPSTREAM[MODELS])
    ours.add_hook("adds", {MODELS: before}, {MODELS: before + MAY_BE_THERE}, ">=1.0,<=1.1")
    assert misfits(check(ours)) == []


def test_a_guard_of_upstream_s_does_not_hide_what_a_hook_adds(ours: Miniature) -> None:
    guard = (
        "\n\n        def touch(block: Block):\n            if not hasattr(block, 'extra'):\n                return 1\n"
    )
    before = textwrap.dedent(UPSTREAM[MODELS] + guard)
    ours.add_hook("adds", {MODELS: before}, {MODELS: before + "    return Router()\n"}, ">=1.0,<=1.1")
    (found,) = misfits(check(ours, {MODELS: before}))
    assert found.startswith("call touch: Router(): sglang.srt.layers.router.Router: missing a required argument")


def rename(ours: Miniature, name: str, old: str, new: str, text: str) -> None:
    """Add a hook that gives a file of UPSTREAM's another name and makes it what `text` says."""
    before, after = (textwrap.dedent(side).encode() for side in (UPSTREAM[old], text))
    diff = make_diff({old: before}, {old: None, new: after}, {new: old})
    series = (ours.root / "patches/series").read_text()
    ours.write("patches/series", f"{series}{name}\n")
    ours.write(f"patches/{name}/1.0.patch", HEADER + diff)


def test_what_a_hook_deletes_is_not_there(ours: Miniature) -> None:
    ours.add_hook("less", {ROUTER: textwrap.dedent(UPSTREAM[ROUTER])}, {}, ">=1.0,<=1.1")
    assert any("import sglang.srt.layers.router" in line for line in misfits(check(ours)))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("from sglang.srt.layers.router import Router\n", True),
        ("def f():\n    import sglang.srt.layers.router\n", True),
        ("from .layers import router\n", True),
        ("from .layers.router import Router\n", True),
        ("router = 1\nfrom sglang.srt.layers.other import router\n", False),
        ("from sglang.srt.layers.router import Router\n" * 2, True),
    ],
)
def test_a_file_that_imports_what_a_hook_deletes_is_named_once(ours: Miniature, text: str, named: bool) -> None:
    ours.add_hook("less", {ROUTER: textwrap.dedent(UPSTREAM[ROUTER])}, {}, ">=1.0,<=1.1")
    said = [item for item in check(ours, {"sglang/srt/user.py": text}) if item.what.startswith("sglang/srt/user.py")]
    assert [(item.where, item.kind, item.what, item.problem) for item in said] == [
        (
            "patches/less/1.0.patch", "import", "sglang/srt/user.py: sglang.srt.layers.router",
            "a hook takes it away",
        )
    ] * named  # fmt: skip


def test_what_a_hook_renames_is_under_its_new_name(ours: Miniature) -> None:
    new = "sglang/srt/layers/new_router.py"
    rename(ours, "renamed", ROUTER, new, UPSTREAM[ROUTER])
    assert any("import sglang.srt.layers.router" in line for line in misfits(check(ours)))
    add_hook(ours, "uses", MODELS, UPSTREAM[MODELS].replace("layers.router", "layers.new_router"))
    assert [line for line in misfits(check(ours)) if line.startswith("import sglang.srt.layers.new_router")] == []


def test_the_lines_of_a_renamed_file_are_checked_where_they_are_at_last(ours: Miniature) -> None:
    first, last = "sglang/srt/models/first.py", "sglang/srt/models/last.py"
    rename(ours, "first", MODELS, first, PASSES)
    text = textwrap.dedent(PASSES).encode()
    diff = make_diff({first: text}, {first: None, last: text}, {last: first})
    ours.write("patches/last/1.0.patch", HEADER + diff)
    ours.write("patches/series", (ours.root / "patches/series").read_text() + "last\n")
    (found,) = [item for item in check(ours) if "unexpected keyword argument 'extra'" in item.problem]
    assert found.where.startswith("patches/first/1.0.patch:")
