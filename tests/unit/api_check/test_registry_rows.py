from __future__ import annotations

import re
import textwrap

import pytest
from overlay_tools.errors import ContractError

from unit.api_check.derived import ROW, ROW_FILE, UPSTREAM, check, misfits
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
    assert old in ROW
    ours.write(ROW_FILE, ROW.replace(old, new))
    assert expected in misfits(check(ours))


def test_a_row_that_is_not_literal_is_named_with_its_line(ours: Miniature) -> None:
    ours.write(ROW_FILE, "\n" + ROW.replace("base=", "base=NAME or "))
    with pytest.raises(ContractError, match=rf"^{re.escape(ROW_FILE)}:2: its ROW cannot be read"):
        check(ours)


@pytest.mark.parametrize("text", ["", "ROW = None\n", "ROW = OverlayModel()\n", "ROWS = [1]\n"])
def test_a_file_without_a_row_is_named(ours: Miniature, text: str) -> None:
    ours.write(ROW_FILE, text)
    with pytest.raises(ContractError, match=rf"^{re.escape(ROW_FILE)}:1: its ROW cannot be read"):
        check(ours)


def test_a_row_counts_in_the_releases_that_take_its_file(ours: Miniature) -> None:
    ours.write("overlay/sglang/srt/overlay_models/a.py", ROW.replace("OursFor", "MoreFor").replace("ours:", "more:"))
    assert [text for text in misfits(check(ours)) if text.startswith("row MoreForCausalLM: model")]
    settings = (ours.root / "pyproject.toml").read_text(encoding="utf-8")
    ours.write("pyproject.toml", settings + '[tool.sglang-overlay.files]\n"sglang/srt/overlay_models/a.py" = ">1.0"\n')
    assert misfits(check(ours)) == []


PARSERS = {
    "sglang/srt/parser/reasoning_parser.py": "class ReasoningParser:\n    DetectorMap: dict = {'qwen3': int}\n",
    "sglang/srt/function_call/function_call_parser.py": "class Parser:\n    ToolCallParserEnum = {'q': int}\n",
    "sglang/srt/server_args.py": "class ServerArgs:\n    page_size: int = None\n",
    "sglang/srt/arg_groups/fields/memory.py": "class Memory:\n    pool: int = None\n",
}


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ('reasoning_parser="qwen3"', None),
        ('reasoning_parser="q"', "reasoning_parser q: upstream has no reasoning parser q"),
        ('reasoning_parser="sglang.srt.models.ours:route"', None),
        (
            'reasoning_parser="sglang.srt.models.ours:root"',
            "reasoning_parser sglang.srt.models.ours:root: sglang.srt.models.ours has no `root`",
        ),
        ('tool_call_parser="q"', None),
        ('tool_call_parser="qwen3"', "tool_call_parser qwen3: upstream has no tool call parser qwen3"),
        ('arguments={"page_size": 1, "pool": 2}', None),
        ('arguments={"pool_size": 1}', "arguments pool_size: upstream's server has no argument pool_size"),
        (
            'chat_template="sglang.srt.models.ours:root"',
            "chat_template sglang.srt.models.ours:root: sglang.srt.models.ours has no `root`",
        ),
    ],
)
def test_what_a_row_says_to_the_server_must_be_there(ours: Miniature, field: str, expected: str | None) -> None:
    ours.write(ROW_FILE, ROW.replace("base=", f"{field}, base="))
    assert misfits(check(ours, PARSERS)) == ([f"row OursForCausalLM: {expected}"] if expected else [])


def test_an_overlay_without_a_file_of_a_row_has_none(ours: Miniature) -> None:
    (ours.root / ROW_FILE).unlink()
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
    ours.write(ROW_FILE, ROW.replace("base=", config))
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
