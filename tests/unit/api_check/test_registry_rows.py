from __future__ import annotations

import textwrap

import pytest
from overlay_tools.errors import ContractError

from unit.api_check.derived import REGISTRY, UPSTREAM, check, misfits
from unit.conftest import Miniature


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "ours:Ours",
            "our:Ours",
            "row OursForCausalLM: model sglang.srt.models.our:OursForCausalLM: "
            "the overlay has no module sglang.srt.models.our",
        ),
        (
            "models.ours:Ours",
            "models.base:Ours",
            "row OursForCausalLM: model sglang.srt.models.base:OursForCausalLM: "
            "the overlay has no module sglang.srt.models.base",
        ),
        (
            "ours:OursFor",
            "ours:YoursFor",
            "row YoursForCausalLM: model sglang.srt.models.ours:YoursForCausalLM: "
            "sglang.srt.models.ours has no `YoursForCausalLM`",
        ),
        (
            "ours:OursForCausalLM",
            "ours:route",
            "row route: model sglang.srt.models.ours:route: sglang.srt.models.ours does not list it in EntryClass",
        ),
        (
            'base="Base',
            'draft="sglang.srt.models.ours:route", base="Base',
            "row OursForCausalLM: draft sglang.srt.models.ours:route: "
            "sglang.srt.models.ours does not list it in EntryClass",
        ),
        (
            'base="Base',
            'on_install="sglang.srt.models.ours:go", base="Base',
            "row OursForCausalLM: on_install sglang.srt.models.ours:go: sglang.srt.models.ours has no `go`",
        ),
        (
            'base="BaseFor',
            'base="InfoFor',
            "row OursForCausalLM: base InfoForCausalLM: upstream has no model InfoForCausalLM",
        ),
    ],
)
def test_a_row_that_names_something_missing_is_reported(ours: Miniature, old: str, new: str, expected: str) -> None:
    ours.write("overlay/sglang/srt/overlay_registry.py", textwrap.dedent(REGISTRY).replace(old, new))
    assert expected in misfits(check(ours))


def test_a_row_that_is_not_literal_is_named_with_its_line(ours: Miniature) -> None:
    text = textwrap.dedent(REGISTRY).replace("base=", "base=NAME or ")
    ours.write("overlay/sglang/srt/overlay_registry.py", text)
    with pytest.raises(ContractError, match=r"overlay_registry\.py:2: this row of MODELS cannot be read"):
        check(ours)


def test_an_overlay_without_a_registry_has_no_rows(ours: Miniature) -> None:
    (ours.root / "overlay/sglang/srt/overlay_registry.py").unlink()
    assert [item for item in check(ours) if item.kind == "row"] == []


@pytest.mark.parametrize(
    ("upstream", "expected"),
    [
        (
            {"sglang/srt/models/new.py": "class OursForCausalLM:\n    pass\n"},
            "collision architecture OursForCausalLM: upstream has one: sglang/srt/models/new.py:1",
        ),
        (
            {"sglang/srt/args.py": "\nARCHS = ['OursForCausalLM']\n"},
            "collision architecture OursForCausalLM: upstream has one: sglang/srt/args.py:2",
        ),
        (
            {"sglang/srt/configs/new.py": "class New:\n    model_type: str = 'ours'\n"},
            "collision model_type ours: upstream has one: sglang/srt/configs/new.py:2",
        ),
        (
            {"sglang/srt/multimodal/processors/new.py": "class OursProcessor:\n    models = []\n"},
            "collision processor OursProcessor: upstream has one: sglang/srt/multimodal/processors/new.py:1",
        ),
        (
            {"sglang/srt/multimodal/processors/new.py": "class New:\n    models = [OursForCausalLM]\n"},
            "collision processor OursForCausalLM: upstream has one: sglang/srt/multimodal/processors/new.py:1",
        ),
        ({"sglang/srt/other.py": "# OursForCausalLM\nours = 'ours'\nclass OursProcessor: ...\n"}, None),
    ],
)
def test_a_name_that_upstream_uses_too_is_a_collision(
    ours: Miniature, upstream: dict[str, str], expected: str | None
) -> None:
    config = 'config="sglang.srt.configs.ours:OursConfig", base='
    ours.write("overlay/sglang/srt/overlay_registry.py", textwrap.dedent(REGISTRY).replace("base=", config))
    ours.write("overlay/sglang/srt/configs/ours.py", "class OursConfig:\n    model_type = 'ours'\n")
    processor = "class OursProcessor:\n    models = [OursForCausalLM]\n"
    ours.write("overlay/sglang/srt/multimodal/processors/ours.py", processor)
    assert misfits(check(ours, upstream)) == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("ours_has", "upstream", "expected"),
    [
        (
            {"sglang/srt/models/fork.py": "class ForkForCausalLM: ...\nEntryClass = [ForkForCausalLM]\n"},
            {"sglang/srt/models/new.py": "class ForkForCausalLM: ...\nEntryClass = ForkForCausalLM\n"},
            "collision architecture ForkForCausalLM: upstream has one: sglang/srt/models/new.py:1",
        ),
        (
            {"sglang/srt/configs/fork.py": "class ForkConfig:\n    model_type: str = 'fork'\n"},
            {"sglang/srt/configs/new.py": "class New:\n    model_type = 'fork'\n"},
            "collision model_type fork: upstream has one: sglang/srt/configs/new.py:2",
        ),
        (
            {"sglang/srt/models/fork.py": "class ForkForCausalLM: ...\nEntryClass = [ForkForCausalLM]\n"},
            {"sglang/srt/models/new.py": "class NewForCausalLM: ...\n# ForkForCausalLM\n"},
            None,
        ),
    ],
)
def test_what_a_file_without_a_row_registers_may_collide_too(
    ours: Miniature, ours_has: dict[str, str], upstream: dict[str, str], expected: str | None
) -> None:
    for path, text in ours_has.items():
        ours.write(f"overlay/{path}", text)
    assert misfits(check(ours, upstream)) == ([expected] if expected else [])


MODELS = "sglang/srt/models/base.py"
HOOKED = (
    textwrap.dedent(UPSTREAM[MODELS])
    + "\nclass ForkForCausalLM: ...\nEntryClass = [BaseForCausalLM, ForkForCausalLM]\n"
)


@pytest.mark.parametrize(
    "text", ["class ForkForCausalLM: ...\nEntryClass = ForkForCausalLM\n", "NAMES = ['ForkForCausalLM']\n"]
)
def test_what_a_hook_registers_may_collide_too(ours: Miniature, text: str) -> None:
    before, after = ({MODELS: textwrap.dedent(side)} for side in (UPSTREAM[MODELS], HOOKED))
    ours.add_hook("fork", before, after, ">=1.0,<=1.1")
    assert misfits(check(ours)) == []
    new = {"sglang/srt/models/new.py": text}
    (found,) = [item for item in check(ours, new) if item.problem]
    assert found.where == "patches/fork/1.0.patch"
    assert (found.kind, found.what) == ("collision", "architecture ForkForCausalLM")
    assert found.problem == "upstream has one: sglang/srt/models/new.py:1"


def test_what_hooks_bring_at_two_places_is_no_collision(ours: Miniature) -> None:
    before, after = ({MODELS: textwrap.dedent(side)} for side in (UPSTREAM[MODELS], HOOKED))
    ours.add_hook("fork", before, after, ">=1.0,<=1.1")
    router = "sglang/srt/layers/router.py"
    before, after = (
        {router: textwrap.dedent(side)}
        for side in (UPSTREAM[router], textwrap.dedent(UPSTREAM[router]) + "\nNAMES = ['ForkForCausalLM']\n")
    )
    ours.add_hook("list", before, after, ">=1.0,<=1.1")
    assert misfits(check(ours)) == []
