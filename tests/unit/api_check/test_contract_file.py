from __future__ import annotations

from pathlib import Path

import pytest
from overlay_tools.api_check.contract_file import load_contract
from overlay_tools.errors import ContractError

from unit.api_check.derived import WAIVER
from unit.conftest import Miniature


@pytest.mark.parametrize(
    ("text", "expected"),
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
        ("mentions = [\n{ file = 'x', scope = '*', what = 'y' },\n]\n", "contract.toml:2: reason is missing"),
        (
            "mentions = [\n{ file = 'x', scope = '*', what = 'y', handled = 'alias', reason = 'z' },\n]\n",
            "contract.toml:2: unknown key 'handled'",
        ),
        (
            "mentions = [\n{ file = 'x', scope = '*', what = 'y', reason = 'z', times = 0 },\n]\n",
            "contract.toml:2: times cannot be 0",
        ),
        ("mentions = []\n\n[mechanisms]\nalias = 'x'\n", "contract.toml:3: unknown key 'mechanisms'"),
    ],
)
def test_a_fault_in_the_file_is_named_with_its_line(mini: Miniature, text: str, expected: str) -> None:
    path = mini.write("ci/contract.toml", text)
    with pytest.raises(ContractError) as caught:
        load_contract(path)
    assert expected in str(caught.value)
    assert caught.value.hint


def test_all_faults_are_reported_at_once(mini: Miniature) -> None:
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
