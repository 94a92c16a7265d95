"""On two GPUs that share its weights or its experts, a model is as near to its reference model as on one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from engine.harness import EXTRA_BUFFER, generate, post

from gpu.near import ReferenceModel, Servers
from gpu.servers import KNOWN, Wanted, servers
from gpu.test_parity import COMMON, DRAFTS, DRAFTS_ENVIRONMENT, POOL, PROMPTS, Show

RANKS: dict[str, dict[str, object]] = {"TP=2": {"tp_size": 2}, "EP=2": {"tp_size": 2, "ep_size": 2}}
# A release that has this switch may, on a Hopper GPU, fuse the all-reduce after a layer with the next norm by itself.
UNFUSED = "enforce_disable_flashinfer_allreduce_fusion"
if UNFUSED in KNOWN:
    RANKS |= {f"{name}, unfused": ranks | {UNFUSED: True} for name, ranks in RANKS.items()}
RANKS["TP=2, drafts"] = RANKS["TP=2"] | DRAFTS

# Servers that start side by side take memory on one GPU before the other: upstream would refuse such a pair.
ENVIRONMENT = DRAFTS_ENVIRONMENT | {"SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK": "0"}

pytestmark = [
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed"),
    pytest.mark.parametrize("name", RANKS),
]


@pytest.fixture(scope="module")
def running(reference: ReferenceModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    wanted = {
        name: Wanted(reference.checkpoint, {**COMMON, **POOL, **EXTRA_BUFFER, **ranks}, ENVIRONMENT)
        for name, ranks in RANKS.items()
    }
    with servers(wanted, tmp_path_factory.mktemp("servers")) as started:
        yield started


def test_two_ranks_are_as_exact_as_transformers(
    running: Servers, reference: ReferenceModel, name: str, show: Show
) -> None:
    outputs = generate(running[name], PROMPTS, 32, logprob_start_len=0)
    reference.assert_near(PROMPTS, outputs, show, f"{name}, 256 prompts at once")


def test_small_prefills_are_as_exact_as_transformers(
    running: Servers, reference: ReferenceModel, name: str, show: Show
) -> None:
    """An all-reduce of more than 2048 tokens is never fused."""
    server = running[name]
    post(server.url, "/flush_cache")
    eights = [PROMPTS[i : i + 8] for i in range(0, len(PROMPTS), 8)]
    assert max(sum(map(len, eight)) for eight in eights) < 2048
    outputs = [output for eight in eights for output in generate(server, eight, 32, logprob_start_len=0)]
    reference.assert_near(PROMPTS, outputs, show, f"{name}, 8 prompts at once")
