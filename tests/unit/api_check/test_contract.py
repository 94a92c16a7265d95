from __future__ import annotations

from pathlib import Path

from overlay_tools.api_check.contract import unfit, unused_waivers

from unit.api_check.derived import WAIVER, changed, check, misfits
from unit.conftest import Miniature


def waive(mini: Miniature, *entries: str) -> Path:
    return mini.write("ci/contract.toml", "waivers = [\n" + "".join(f"    {entry},\n" for entry in entries) + "]\n")


def test_a_waiver_gives_its_reason(ours: Miniature) -> None:
    waive(ours, WAIVER)
    found = check(ours, changed("input_ids, positions", "input_ids, positions, batch=None"))
    assert misfits(found) == []
    assert [item.waived for item in found if item.problem] == ["no one passes it"]
    assert unused_waivers(ours.project, found) == []


def test_another_problem_at_the_same_place_is_not_waived(ours: Miniature) -> None:
    waive(ours, WAIVER)
    found = check(ours, changed("input_ids, positions", "input_ids, positions, batch=None, mode=None"))
    assert misfits(found) == ["override OursForCausalLM.forward: upstream also takes `mode`"]


def test_a_waiver_holds_in_its_releases_only(ours: Miniature) -> None:
    waive(ours, WAIVER.replace("reason", 'releases = ">=1.1", reason'))
    change = changed("input_ids, positions", "input_ids, positions, batch=None")
    assert len(misfits(check(ours, change, version="1.0"))) == 1
    assert misfits(check(ours, change, version="1.1")) == []


def test_a_waiver_that_matches_nothing_is_named_with_its_line(ours: Miniature) -> None:
    path = waive(ours, WAIVER, WAIVER.replace("forward", "backward"))
    found = check(ours) + check(
        ours, changed("input_ids, positions", "input_ids, positions, batch=None"), version="1.1"
    )
    assert unused_waivers(ours.project, found) == [
        f"{path}:3: the waiver of OursForCausalLM.backward matches nothing in any locked release."
    ]


def test_what_fits_is_not_waived(ours: Miniature) -> None:
    path = waive(ours, WAIVER.replace("*takes `batch`", "*"))
    found = check(ours)
    assert [item.waived for item in found if item.waived] == []
    assert unused_waivers(ours.project, found) == [
        f"{path}:2: the waiver of OursForCausalLM.forward matches nothing in any locked release."
    ]


def test_each_finding_says_where_it_is_and_what_to_do(ours: Miniature) -> None:
    upstream = changed("def make_head(config, scale)", "def make_head(config)", "sglang/srt/layers/head.py")
    assert unfit(check(ours)) == []
    lines = unfit(check(ours, upstream))
    assert len(lines) == 1
    assert lines[0].startswith("overlay/sglang/srt/models/ours.py:17: call OursForCausalLM.__init__: make_head(): ")
    assert lines[0].endswith(
        ".\n    pass what this release takes too; where releases differ, ask the signature or the version."
    )
