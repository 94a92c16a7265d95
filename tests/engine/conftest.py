"""Tiny checkpoints and what their reference models answer.

These tests run inside an environment where the wheel under test, its kernel wheel and pytest are installed.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from overlay_tools.engines import engine_config
from overlay_tools.supervisor import end_with_parent

os.environ.update(engine_config.ENV)  # before anything imports torch or sglang

from reference.cases import cases, make_checkpoint
from reference.greedy import all_answers, is_decided

from engine.harness import CHECKPOINTS, Model, run_first


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--updates N`: how many updates the storm of test_weight_updates.py has."""
    parser.addoption("--updates", type=int, default=0, metavar="N", help="how many updates of weights the storm has")


@pytest.fixture(scope="session", autouse=True)
def quicker_starts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Run FIRST in all Python processes that the tests start."""
    os.environ.update(run_first("", tmp_path_factory.mktemp("first")))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """Make each of CHECKPOINTS and ask its reference model."""
    made = {}
    # A process of their own: sglang and its kernels change torch and transformers for all that is loaded after them.
    # It ends here, before an engine does: that kills all processes that this one has started.
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        for name, (kind, changes) in CHECKPOINTS.items():
            path = tmp_path_factory.mktemp(kind)
            make_checkpoint(kind, path, changes)
            model = Model(
                path=path,
                case=cases()[kind],
                answers=pool.submit(all_answers, kind, path).result(),
            )
            # Where the reference model is nearly undecided, rounding decides: that would say nothing about the engine.
            assert is_decided(model.answers), f"{kind}: run `python tests/reference/seeds.py {kind}` for another seed"
            made[name] = model
    return made
