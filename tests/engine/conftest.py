"""Tiny checkpoints and what their reference models answer.

These tests run inside an environment where the wheel under test, its kernel wheel and pytest are installed.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from filelock import FileLock
from overlay_tools.engines import engine_config
from overlay_tools.supervisor import end_with_parent

os.environ.update(engine_config.ENV)  # before anything imports torch or sglang

from reference.cases import cases, left_out, make_checkpoint
from reference.greedy import Completion, all_answers, is_decided

from engine.harness import CHECKPOINTS, Model, run_first
from engine.turns import turn


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--updates N`, how many updates the storm of test_weight_updates.py has, and `--whole`.

    With that, what is otherwise run in part runs whole: the faults of test_compare.py, and test_stock_models.py.
    """
    parser.addoption("--updates", type=int, default=0, metavar="N", help="how many updates of weights the storm has")
    parser.addoption("--whole", action="store_true", help="each fault and each of upstream's models, not some of them")


@pytest.fixture(scope="session", autouse=True)
def quicker_starts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Run FIRST in all Python processes that the tests start."""
    os.environ.update(run_first("", tmp_path_factory.mktemp("first")))


def pytest_report_header() -> list[str]:
    """Say which models this release is built without: their tests are not there."""
    return [f"left out: {name}: {why}" for name, why in left_out().items()]


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Give the folder that all processes of this run have."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if hasattr(request.config, "workerinput") else own


@pytest.fixture(autouse=True)
def one_turn(request: pytest.FixtureRequest, common: Path) -> Iterator[None]:
    """Run a test that is marked so alone, and others beside those of another process."""
    with turn(common, alone=request.node.get_closest_marker("alone") is not None):
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out the tests that no case of this release needs, which pytest would skip.

    The first that is left says in pytest's report which models this release is built without.
    """
    idle = [
        item
        for item in items
        if any("got empty parameter set" in mark.kwargs.get("reason", "") for mark in item.iter_markers("skip"))
    ]
    items[:] = [item for item in items if item not in idle]
    config.hook.pytest_deselected(items=idle)
    for item in items[:1]:
        item.user_properties += [("left out", f"{name}: {why}") for name, why in left_out().items()]


@pytest.fixture(scope="session")
def reference_process() -> Iterator[ProcessPoolExecutor]:
    """Run reference models in a process of their own: sglang changes transformers for all that is loaded after it."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        yield pool


@pytest.fixture(scope="session")
def models(
    common: Path, reference_process: ProcessPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Model]:
    """Make each of CHECKPOINTS and ask its reference model, once for all processes of this run."""
    path = common / "models"
    with FileLock(common / "models.lock"):
        if not path.exists():
            asked: dict[str, tuple[Path, Future[list[Completion]]]] = {}
            for name, (kind, changes) in CHECKPOINTS.items():
                folder = tmp_path_factory.mktemp(kind)
                make_checkpoint(kind, folder, changes)
                asked[name] = folder, reference_process.submit(all_answers, kind, folder)
            answered = {name: (folder, answers.result()) for name, (folder, answers) in asked.items()}
            path.write_bytes(pickle.dumps(answered))
    made = {}
    for name, (folder, answers) in pickle.loads(path.read_bytes()).items():
        kind, _ = CHECKPOINTS[name]
        # Where the reference model is nearly undecided, rounding decides: that would say nothing about the engine.
        assert is_decided(answers), f"{name}: run `python tests/reference/seeds.py {kind}` for another seed"
        made[name] = Model(path=folder, case=cases()[kind], answers=answers)
    return made
