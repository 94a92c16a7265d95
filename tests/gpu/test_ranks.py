"""On several GPUs, however they share its weights, experts or requests, a model is as near to its reference as on one.

Two GPUs are taken where there are two or three, and four where there are more. Upstream's Qwen3-Next has no pipeline
parallelism: its constructor asks for one stage.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import torch
from engine.harness import EXTRA_BUFFER, cached, generate, post

from gpu.near import ReferenceModel, Servers
from gpu.servers import KNOWN, Wanted, servers
from gpu.test_parity import COMMON, DRAFTS, DRAFTS_ENVIRONMENT, POOL, PROMPTS, Show

GPUS = 4 if torch.cuda.device_count() >= 4 else 2
TENSORS: dict[str, object] = {"tp_size": GPUS}
EXPERTS: dict[str, object] = {**TENSORS, "ep_size": GPUS}
REBALANCED: dict[str, object] = {
    **EXPERTS,
    "enable_eplb": True,
    "ep_num_redundant_experts": 2 * GPUS,
    "eplb_rebalance_num_iterations": 40,  # steps: some times while the first prompts are answered
    "expert_distribution_recorder_buffer_size": 40,
    "eplb_min_rebalancing_utilization_threshold": 1.0,
}
RANKS: dict[str, dict[str, object]] = {f"TP={GPUS}": TENSORS, f"EP={GPUS}": EXPERTS}
# A release that has this switch may, on a Hopper GPU, fuse the all-reduce after a layer with the next norm by itself.
UNFUSED = "enforce_disable_flashinfer_allreduce_fusion"
if UNFUSED in KNOWN:
    RANKS |= {f"{name}, unfused": ranks | {UNFUSED: True} for name, ranks in RANKS.items()}
    TENSORS, EXPERTS, REBALANCED = (ranks | {UNFUSED: True} for ranks in (TENSORS, EXPERTS, REBALANCED))
RANKS[f"TP={GPUS}, drafts"] = TENSORS | DRAFTS
RANKS[f"TP={GPUS}, attention DP=2"] = {**TENSORS, "dp_size": 2, "enable_dp_attention": True}
MOVED = f"EP={GPUS}, experts moved"
RANKS[MOVED] = REBALANCED
NODES = f"TP={GPUS}, two nodes"
RANKS[NODES] = {**TENSORS, "nnodes": 2, "node_rank": 0}

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed")
each = pytest.mark.parametrize("name", RANKS)


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, reference: ReferenceModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    """Start the servers of the tests that are selected."""
    mine = [item for item in request.session.items if item.module is request.module]  # type: ignore[attr-defined]
    selected = {item.callspec.params.get("name", MOVED) for item in mine}  # type: ignore[attr-defined]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"dist_init_addr": f"127.0.0.1:{free.getsockname()[1]}"}
    ranks = {name: of for name, of in RANKS.items() if name in selected}
    if NODES in ranks:
        ranks[NODES] = RANKS[NODES] | meeting
        ranks["the second node"] = {**ranks[NODES], "node_rank": 1, "base_gpu_id": GPUS // 2}
    wanted = {
        name: Wanted(reference.checkpoint, {**COMMON, **POOL, **EXTRA_BUFFER, **of}, DRAFTS_ENVIRONMENT)
        for name, of in ranks.items()
    }
    with servers(wanted, tmp_path_factory.mktemp("servers")) as started:
        yield started


@each
def test_many_ranks_are_as_exact_as_transformers(
    running: Servers, reference: ReferenceModel, name: str, show: Show
) -> None:
    outputs = generate(running[name], PROMPTS, 32, logprob_start_len=0)
    reference.assert_near(PROMPTS, outputs, show, f"{name}, 256 prompts at once")


@each
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


@each
def test_what_is_cached_is_as_exact_as_transformers(
    running: Servers, reference: ReferenceModel, name: str, show: Show
) -> None:
    prompts = [prompt for prompt in PROMPTS if len(prompt) > 130][:64]
    post(running[name].url, "/flush_cache")
    for _ in range(3):  # with data-parallel attention a prompt may come to either copy
        outputs = generate(running[name], prompts, 32)
    assert sum(cached(outputs)) > 64 * len(prompts)
    reference.assert_near(prompts, outputs, show, f"{name}, from the cache")


def test_experts_were_moved(running: Servers) -> None:
    """In the order of this file: after all else."""
    assert running[MOVED].log.read_text(errors="replace").count("rebalance end") >= 3
