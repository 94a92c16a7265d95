"""Qwen3-Next-Ext on two GPUs, its weights or its experts shared among them, is as near to its twin as on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from engine.harness import EXTRA_BUFFER, generate
from reference.checkpoints import TRAINED

from gpu.near import Servers, Twins
from gpu.servers import KNOWN, Wanted, servers
from gpu.test_parity import COMMON, POOL, PROMPTS

RANKS: dict[str, dict[str, object]] = {"TP=2": {"tp_size": 2}, "EP=2": {"tp_size": 2, "ep_size": 2}}
# A release that has this switch may, on a Hopper GPU, fuse the all-reduce after a layer with the next norm by itself.
UNFUSED = "enforce_disable_flashinfer_allreduce_fusion"
if UNFUSED in KNOWN:
    RANKS |= {f"{name}, unfused": ranks | {UNFUSED: True} for name, ranks in RANKS.items()}

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed")


@pytest.fixture(scope="module", params=RANKS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    # One after the other: ranks wait for each other on the GPU, which they would not share well with another server's.
    name: str = request.param
    wanted = {name: Wanted(TRAINED, {**COMMON, **POOL, **EXTRA_BUFFER, **RANKS[name]})}
    with servers(wanted, tmp_path_factory.mktemp("servers")) as started:
        yield started


def test_two_ranks_are_as_exact_as_transformers(running: Servers, twins: Twins, show: Callable[[str], None]) -> None:
    [(name, server)] = running.items()
    outputs = generate(server, PROMPTS, 32, logprob_start_len=0)
    twins.assert_near(PROMPTS, outputs, show, f"{name}, 256 prompts")
