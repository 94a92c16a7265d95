"""Checkpoints quantised to FP8 by blocks, as the released Qwen3-Next-80B-A3B-Instruct-FP8 is, with upstream's kernels.

The truth is the reference model in float32 with the weights that the quantised ones stand for. The engine may be 1.2
times as far from it as that model is in bfloat16 with inputs rounded to FP8, as the kernels round them: upstream's own
model is held to the same, and an adopted checkpoint to what upstream's own model answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from engine.harness import EXTRA_BUFFER, generate, post, tokens_a_step, tokens_of
from models.qwen3_next_ext.blocks import fit_blocks
from models.qwen3_next_ext.case import OFF
from overlay_tools.checkpoints.adopt import adopt, read_stock
from overlay_tools.engines.server import Server
from reference.cases import make_checkpoint, read_config
from reference.checkpoints import write_config
from reference.fp8 import quantise
from reference.fp8_truth import judge_quantised

from gpu.near import WORKERS, Outputs, ReferenceModel, Servers, ask_again
from gpu.servers import KNOWN, Wanted, servers
from gpu.test_parity import COMMON, DRAFTS, DRAFTS_ENVIRONMENT, POOL, PROMPTS, Show

NAME = "qwen3-next-ext"
OVERLAY = Path(__file__).parents[2] / "overlay"

# Triton's kernels: DeepGEMM, CUTLASS and FlashInfer build theirs when a server starts, not on every machine.
TRITON: dict[str, object] = {
    "moe_runner_backend": "triton",
    **({"fp8_gemm_backend": "triton"} if "fp8_gemm_runner_backend" in KNOWN else {}),
}
ENVIRONMENT = DRAFTS_ENVIRONMENT | {"SGLANG_ENABLE_JIT_DEEPGEMM": "0"}
ALONE = "disable_shared_experts_fusion"  # upstream makes the shared expert one of the others where they are alike

LESS_RIGHT = 0.01  # than Transformers, of greedy tokens: of its own, 97% are those of the truth

STOCK, ADOPTED = "stock", "adopted, all off"
EXT: dict[str, dict[str, object]] = {"all on": EXTRA_BUFFER, "all on, drafts": DRAFTS}
if ALONE in KNOWN:
    EXT["all on, shared expert alone"] = {**EXTRA_BUFFER, ALONE: True}
if torch.cuda.device_count() > 1:
    EXT["all on, TP=2"] = {**EXTRA_BUFFER, "tp_size": 2}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make quantised checkpoints: with all extensions, a stock one with none, and that one adopted."""
    folder = tmp_path_factory.mktemp("fp8")
    for name, changes in (("all on", {}), (STOCK, OFF)):
        plain = folder / f"{name}, unquantised"
        make_checkpoint(NAME, plain, changes)
        fit_blocks(plain)
        if name == STOCK:
            make_stock(plain)
        quantise(plain, folder / name)
    adopt(read_stock(folder / STOCK), folder / ADOPTED, [], OVERLAY)
    return {name: folder / name for name in ("all on", STOCK, ADOPTED)}


def make_stock(folder: Path) -> None:
    """Let config.json say that the checkpoint is upstream's own Qwen3-Next, as a released one would."""
    config = read_config(folder)
    types = config.pop("layer_types")
    own = {
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "full_attention_interval": types.index("full_attention") + 1,
    }
    write_config(folder, config | own)


@pytest.fixture(scope="module")
def references(checkpoints: dict[str, Path], pool: ProcessPoolExecutor) -> dict[str, ReferenceModel]:
    """Give the reference models of both functions; that of Ext with nothing on is Qwen3-Next's."""
    found = {"all on": checkpoints["all on"], STOCK: checkpoints[ADOPTED]}
    for _ in range(WORKERS):
        pool.submit(judge_quantised, NAME, checkpoints["all on"], [])
    return {name: ReferenceModel(NAME, checkpoint, pool, judge_quantised) for name, checkpoint in found.items()}


@pytest.fixture(scope="module")
def running(
    checkpoints: dict[str, Path], references: dict[str, ReferenceModel], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    wanted = {name: (checkpoints["all on"], arguments) for name, arguments in EXT.items()} | {
        name: (checkpoints[name], EXTRA_BUFFER) for name in (STOCK, ADOPTED)
    }
    described = {
        name: Wanted(checkpoint, {**COMMON, **POOL, **TRITON, **arguments}, ENVIRONMENT)
        for name, (checkpoint, arguments) in wanted.items()
    }
    with servers(described, tmp_path_factory.mktemp("servers")) as started:
        yield started


@pytest.mark.parametrize("name", [*EXT, STOCK])
def test_fp8_is_as_exact_as_its_format(
    running: Servers, references: dict[str, ReferenceModel], name: str, show: Show
) -> None:
    outputs = generate(running[name], PROMPTS, 32, logprob_start_len=0)
    reference = references.get(name, references["all on"])
    reference.assert_near(PROMPTS, outputs, show, f"FP8, {name}, 256 prompts", LESS_RIGHT)


def test_an_adopted_checkpoint_answers_as_the_stock_one(running: Servers, show: Show) -> None:
    first, again, adopted = (one_by_one(running[name]) for name in (STOCK, STOCK, ADOPTED))
    noise, difference = furthest(first, again), furthest(first, adopted)
    show(f"FP8, adopted beside stock: logprobs differ by {difference} at most, in two runs of stock by {noise}")
    assert difference <= noise


def one_by_one(server: Server) -> list[dict[str, object]]:
    """Ask a server, from empty caches: alone, so that no request is computed beside others in one run only."""
    answers = []
    for prompt in PROMPTS[:48]:
        post(server.url, "/flush_cache")
        answers += generate(server, [prompt], 32, logprob_start_len=0)
    return answers


def furthest(one: Outputs, other: Outputs) -> float:
    """Give the largest difference between logprobs, infinity if tokens differ."""
    if [tokens_of(output) for output in one] != [tokens_of(output) for output in other]:
        return float("inf")
    return max(
        float(abs(a[0] - b[0]))
        for x, y in zip(one, other, strict=True)
        for part in ("input_token_logprobs", "output_token_logprobs")
        for a, b in zip(x["meta_info"][part], y["meta_info"][part], strict=True)
        if a[0] is not None
    )


def test_the_same_request_again_comes_from_the_cache(
    running: Servers, references: dict[str, ReferenceModel], show: Show
) -> None:
    prompts, outputs = ask_again(running["all on"])
    references["all on"].assert_near(prompts, outputs, show, "FP8, from the cache", LESS_RIGHT)


def test_drafts_are_accepted(running: Servers, references: dict[str, ReferenceModel], show: Show) -> None:
    prompts = PROMPTS[100:164]
    drafted = generate(running["all on, drafts"], prompts, 64)
    length = tokens_a_step(drafted)
    show(f"FP8, {length:.2f} tokens a step with drafts of 3")
    assert 1.5 < length <= 4
    references["all on"].assert_near(prompts, drafted, show, "FP8, drafts, 64 tokens each", LESS_RIGHT)
