"""What the tests of servers on a GPU share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from overlay_tools.supervisor import end_with_parent
from reference.cases import make_checkpoint
from reference.greedy import judge
from transformers.utils.import_utils import is_flash_linear_attention_available

from gpu.near import MODELS, WORKERS, ReferenceModel


@pytest.fixture(scope="session")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Start the processes of reference models, which import what they need while servers start."""
    # PyTorch's linear attention is in float32 whatever the model is in: no measure of what bfloat16 costs.
    assert is_flash_linear_attention_available(), "flash-linear-attention is not installed"
    with ProcessPoolExecutor(max_workers=WORKERS, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        yield pool


@pytest.fixture(scope="session", params=MODELS)
def reference(
    request: pytest.FixtureRequest, pool: ProcessPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> ReferenceModel:
    """Make a model's checkpoint, and let its reference model be imported."""
    checkpoint = tmp_path_factory.mktemp(request.param)
    make_checkpoint(request.param, checkpoint)
    for _ in range(WORKERS):
        pool.submit(judge, request.param, checkpoint, [])
    return ReferenceModel(request.param, checkpoint, pool)


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a figure although pytest captures output."""

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}")

    return say
