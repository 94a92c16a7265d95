from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from overlay_tools.api_check.contract import unused_waivers
from overlay_tools.api_check.contract_file import load_contract
from overlay_tools.errors import ContractError

from unit.api_check.derived import REGISTRY, changed, check, derive, misfits
from unit.conftest import PATCH, Miniature


@pytest.fixture
def ours(mini: Miniature) -> Miniature:
    return derive(mini)


@pytest.mark.parametrize(
    ("old", "new", "said"),
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
def test_a_row_that_names_what_is_not_there(ours: Miniature, old: str, new: str, said: str) -> None:
    ours.write("overlay/sglang/srt/overlay_registry.py", textwrap.dedent(REGISTRY).replace(old, new))
    assert said in misfits(check(ours))


def test_a_row_that_is_not_literal_is_refused_with_its_line(ours: Miniature) -> None:
    text = textwrap.dedent(REGISTRY).replace("base=", "base=NAME or ")
    ours.write("overlay/sglang/srt/overlay_registry.py", text)
    with pytest.raises(ContractError, match=r"overlay_registry\.py:2: this row of MODELS cannot be read"):
        check(ours)


def test_an_overlay_without_a_registry_has_no_rows(ours: Miniature) -> None:
    (ours.root / "overlay/sglang/srt/overlay_registry.py").unlink()
    assert [item for item in check(ours) if item.kind in ("row", "collision")] == []


@pytest.mark.parametrize(
    ("upstream", "said"),
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
def test_a_name_of_ours_that_upstream_has_itself(ours: Miniature, upstream: dict[str, str], said: str | None) -> None:
    config = 'config="sglang.srt.configs.ours:OursConfig", base='
    ours.write("overlay/sglang/srt/overlay_registry.py", textwrap.dedent(REGISTRY).replace("base=", config))
    ours.write("overlay/sglang/srt/configs/ours.py", "class OursConfig:\n    model_type = 'ours'\n")
    processor = "class OursProcessor:\n    models = [OursForCausalLM]\n"
    ours.write("overlay/sglang/srt/multimodal/processors/ours.py", processor)
    assert misfits(check(ours, upstream)) == ([said] if said else [])


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
        "attribute <module>: overlay_registry.chose: sglang.srt.overlay_registry has no `chose`; now `choose`?"
    ]


def test_a_hook_is_read_in_the_releases_that_take_it(ours: Miniature) -> None:
    lines = "+    from sglang.srt import registry\n"
    ours.patch.write_text(PATCH.replace("+    config = choose(config)\n", lines))
    assert misfits(check(ours)) == ["import sglang.srt.registry: sglang.srt has no `registry`"]
    assert misfits(check(ours, version="1.2")) == []


def test_a_line_of_a_hook_that_is_no_statement_by_itself_is_left_out(ours: Miniature) -> None:
    ours.patch.write_text(PATCH.replace("+    config = choose(config)\n", "+    config=(\n"))
    assert misfits(check(ours)) == []


FIXUPS = """\
    def _replace(releases, module, symbol, replace): ...
    def _edit(releases, module, symbol, old, new): ...

    _LAYERS = "sglang.srt.layers"

    FIXUPS: tuple = (
        _replace("<1.1", f"{_LAYERS}.router", "Router.bind", lambda original: original),
        _edit("", f"{_LAYERS}.head", "make_head", "return object()", "return None"),
        *(
            _replace(releases, module, name, None)
            for releases, module, name in ((">=1.0", f"{_LAYERS}.head", "SCALE"),)
        ),
    )
    """


@pytest.mark.parametrize(
    ("upstream", "said"),
    [
        ({}, []),
        (
            changed("def bind", "def tie", "sglang/srt/layers/router.py"),
            ["row sglang.srt.layers.router:Router.bind: sglang.srt.layers.router has no `Router.bind`"],
        ),
        (
            changed("return object()", "return 1", "sglang/srt/layers/head.py"),
            ["row sglang.srt.layers.head:make_head: 'return object()' is in sglang.srt.layers.head 0 times, not once"],
        ),
        (
            changed("SCALE = 1", "", "sglang/srt/layers/head.py"),
            ["row sglang.srt.layers.head:SCALE: sglang.srt.layers.head has no `SCALE`"],
        ),
        (changed("SCALE = 1", "from sglang.srt.version import SCALE", "sglang/srt/layers/head.py"), []),
    ],
)
def test_the_places_that_the_kernels_change(ours: Miniature, upstream: dict[str, str], said: list[str]) -> None:
    ours.write("overlay/sgl_kernel/fixups.py", textwrap.dedent(FIXUPS))
    assert [text for text in misfits(check(ours, upstream)) if text.startswith("row")] == said


def test_a_row_of_the_kernels_that_cannot_be_read_is_named_with_its_line(ours: Miniature) -> None:
    ours.write("overlay/sgl_kernel/fixups.py", textwrap.dedent(FIXUPS).replace("*(", "*more, *("))
    with pytest.raises(ContractError, match=r"fixups\.py:9: this row of FIXUPS cannot be read"):
        check(ours)


def test_a_file_of_the_overlay_that_is_no_python_is_named_with_its_line(ours: Miniature) -> None:
    ours.write("overlay/sglang/srt/models/ours.py", "import sglang\nclass (\n")
    with pytest.raises(ContractError, match=r"overlay/sglang/srt/models/ours\.py: .*line 2"):
        check(ours)


def test_a_place_of_another_release_is_not_looked_for(ours: Miniature) -> None:
    ours.write("overlay/sgl_kernel/fixups.py", textwrap.dedent(FIXUPS))
    renamed = changed("def bind", "def tie", "sglang/srt/layers/router.py")
    assert [text for text in misfits(check(ours, renamed, version="1.1")) if text.startswith("row")] == []


WAIVER = (
    '{ kind = "override", what = "OursForCausalLM.forward", problem = "*takes `batch`", reason = "no one passes it" }'
)


def waive(mini: Miniature, *entries: str) -> Path:
    return mini.write("ci/contract.toml", "waivers = [\n" + "".join(f"    {entry},\n" for entry in entries) + "]\n")


def test_a_waiver_gives_its_reason(ours: Miniature) -> None:
    waive(ours, WAIVER)
    found = check(ours, changed("input_ids, positions", "input_ids, positions, batch=None"))
    assert misfits(found) == []
    assert [item.waived for item in found if item.problem] == ["no one passes it"]
    assert unused_waivers(ours.project, found) == []


def test_another_problem_of_the_same_place_is_not_waived(ours: Miniature) -> None:
    waive(ours, WAIVER)
    found = check(ours, changed("input_ids, positions", "input_ids, positions, batch=None, mode=None"))
    assert misfits(found) == ["override OursForCausalLM.forward: upstream also takes `mode`"]


def test_a_waiver_holds_in_its_releases_only(ours: Miniature) -> None:
    waive(ours, WAIVER.replace("reason", 'releases = ">=1.1", reason'))
    change = changed("input_ids, positions", "input_ids, positions, batch=None")
    assert len(misfits(check(ours, change, version="1.0"))) == 1
    assert misfits(check(ours, change, version="1.1")) == []


def test_a_waiver_that_waives_nothing_is_named_with_its_line(ours: Miniature) -> None:
    path = waive(ours, WAIVER, WAIVER.replace("forward", "backward"))
    found = check(ours) + check(
        ours, changed("input_ids, positions", "input_ids, positions, batch=None"), version="1.1"
    )
    assert unused_waivers(ours.project, found) == [f"{path}:3: the waiver of OursForCausalLM.backward waives nothing."]


def test_what_fits_is_not_waived(ours: Miniature) -> None:
    path = waive(ours, WAIVER.replace("*takes `batch`", "*"))
    found = check(ours)
    assert [item.waived for item in found if item.waived] == []
    assert unused_waivers(ours.project, found) == [f"{path}:2: the waiver of OursForCausalLM.forward waives nothing."]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("waivers = [\n", "contract.toml: "),
        ("\nwaiver = []\n", "contract.toml:2: unknown key 'waiver'"),
        ("waivers = 1\n", "contract.toml:1: waivers must be a list of tables"),
        ("waivers = [\n 'x',\n]\n", "contract.toml:1: waivers must be a list of tables"),
        (f"waivers = [\n{WAIVER.replace('reason', 'because')},\n]\n", "contract.toml:2: unknown key 'because'"),
        (f"waivers = [\n{WAIVER.replace('reason', 'because')},\n]\n", "contract.toml:2: reason is missing"),
        (f"waivers = [\n{WAIVER.replace('no one passes it', ' ')},\n]\n", "contract.toml:2: reason cannot be ' '"),
        (
            f"waivers = [\n# why\n{WAIVER.replace('override', 'overide')},\n]\n",
            "contract.toml:3: kind must be one of import, override",
        ),
        (
            f"waivers = [\n{WAIVER.replace('reason', 'releases = ' + repr('from 1') + ', reason')},\n]\n",
            "contract.toml:2: releases: ",
        ),
        ("mentions = [\n{ file = 'x', scope = '*', what = [] },\n]\n", "contract.toml:2: what cannot be []"),
        ("mentions = [\n{ file = 'x', scope = '*', what = 'y' },\n]\n", "contract.toml:2: it must have either handled"),
        (
            "mentions = [\n{ file = 'x', scope = '*', what = 'y', handled = 'alias', reason = 'z' },\n]\n",
            "contract.toml:2: it must have either handled",
        ),
        (
            "mentions = [\n{ file = 'x', scope = '*', what = 'y', handled = 'alias' },\n]\n",
            "contract.toml:2: [mechanisms] does not explain 'alias'",
        ),
        (
            "mentions = [\n{ file = 'x', scope = '*', what = 'y', reason = 'z', times = 0 },\n]\n",
            "contract.toml:2: times cannot be 0",
        ),
        ("mentions = []\n\n[mechanisms]\nalias = 1\n", "contract.toml:3: [mechanisms] must explain each in a text"),
    ],
)
def test_a_fault_of_the_file_is_named_with_its_line(mini: Miniature, text: str, said: str) -> None:
    path = mini.write("ci/contract.toml", text)
    with pytest.raises(ContractError) as caught:
        load_contract(path)
    assert said in str(caught.value)
    assert caught.value.hint


def test_every_fault_is_said_at_once(mini: Miniature) -> None:
    first = WAIVER.replace("override", "overide")
    path = mini.write("ci/contract.toml", f"more = 1\nwaivers = [\n{first},\n{WAIVER.replace('reason', 'why')},\n]\n")
    with pytest.raises(ContractError) as caught:
        load_contract(path)
    lines = [problem.removeprefix(f"{path}:").partition(":")[0] for problem in caught.value.problems]
    assert lines == ["1", "3", "4", "4"]


def test_without_the_file_nothing_is_waived(tmp_path: Path) -> None:
    contract = load_contract(tmp_path / "contract.toml")
    assert (contract.waivers, contract.mentions) == ((), ())
    with pytest.raises(ContractError, match="Is a directory"):
        load_contract(tmp_path)
