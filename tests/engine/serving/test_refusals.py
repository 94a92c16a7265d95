"""A model of the overlay that cannot be served as it should be is refused, with the reason."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from overlay_tools.errors import ServeError
from packaging.version import Version
from reference.cases import Fault, cases, make_checkpoint
from reference.checkpoints import change_tensors

from engine.harness import PACKAGE, RELEASE, run_first, server, speculative

BREAK_IMPORT = """
import importlib.abc, sys

class Breaker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == BROKEN:
            raise ImportError("no such thing as a broken dependency")

sys.meta_path.insert(0, Breaker())
"""

FAULTS: dict[str, tuple[str, Fault]] = {
    f"{name}, {what}": (name, fault)
    for name, case in cases().items()
    for what, fault in case.faults.items()
    if not fault.before or Version(fault.before) > RELEASE
}


def refusal(model: str, fault: Fault, folder: Path) -> str:
    """Start the server of a broken checkpoint, which must end by itself; give what it printed."""
    make_checkpoint(model, folder, fault.changes)
    if fault.tensors is not None:
        change_tensors(folder, fault.tensors)
    environment = dict(fault.environment)
    if fault.broken_import:
        environment |= run_first(f"BROKEN = {f'{PACKAGE}.{fault.broken_import}'!r}\n" + BREAK_IMPORT, folder)
    with (
        pytest.raises(ServeError, match=r"The server ended with status [^0]"),
        server(
            folder, folder / "log", speculative(1, state=cases()[model].state)[0] if fault.draft else None, environment
        ),
    ):
        pytest.fail("it serves")
    return (folder / "log").read_text(errors="replace")


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Start all broken servers, some at once, and give what each printed before it ended."""
    with ThreadPoolExecutor(max_workers=3) as pool:
        started = {
            name: pool.submit(refusal, *fault, tmp_path_factory.mktemp("broken")) for name, fault in FAULTS.items()
        }
        return {name: future.result() for name, future in started.items()}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_broken_is_refused_with_the_reason(name: str, refusals: dict[str, str]) -> None:
    _, fault = FAULTS[name]
    for said in fault.said:
        assert re.search(said, refusals[name]), said
