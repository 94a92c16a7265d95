"""Qwen3-Next-Ext in bfloat16 on a GPU with upstream's kernels, against its twin in float32 and in bfloat16.

Rounding decides here where two tokens or two experts are close, so single values prove nothing. Distributions do: the
engine may be 1.2 times as far from the twin in float32 as the twin in bfloat16 is, in the mean and at the 99th of 100
values, and 99 of 100 greedy tokens must be the twin's own. This holds for what comes from a cache, in chunks, in a
batch or through drafts as well.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from engine.harness import EXTRA_BUFFER, post, speculative
from engine.test_qwen3_next_ext import CHUNK, HELD_OUT, cached, tokens_of
from overlay_tools.server import Server
from reference.checkpoints import TRAINED
from reference.greedy import Verdict, encode, judge

from gpu.servers import Wanted, graphs, servers

COMMON: dict[str, object] = {"max_total_tokens": 32_768, "max_running_requests": 32, **graphs(32)}
POOL: dict[str, object] = {"max_mamba_cache_size": 160}
NO_BUFFER: dict[str, object] = {
    **dict.fromkeys(EXTRA_BUFFER, "no_buffer"),
    "disable_overlap_schedule": True,  # what 0.5.13 and later ask for with no_buffer
    "chunked_prefill_size": 48,  # divides few of the prompts' lengths
}
DRAFTS, DRAFTS_ENVIRONMENT = speculative(3)
WANTED = {
    "triton": Wanted(TRAINED, {**COMMON, **POOL, **EXTRA_BUFFER}),
    "flashinfer": Wanted(TRAINED, {**COMMON, **POOL, **NO_BUFFER, "attention_backend": "flashinfer"}),
    "drafts": Wanted(TRAINED, {**COMMON, **DRAFTS}, DRAFTS_ENVIRONMENT),
}
LENGTHS = [1 + 37 * i % 300 for i in range(256)]
PROMPTS = [HELD_OUT[41 * i : 41 * i + length] for i, length in enumerate(LENGTHS)]


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Server]]:
    with servers(WANTED, tmp_path_factory.mktemp("servers")) as started:
        yield started


def generate(server: Server, prompts: Sequence[list[int]], tokens: int = 32, **options: object) -> list[dict[str, Any]]:
    """Continue prompts greedily by so many tokens, sent at once."""
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    body = {"input_ids": list(prompts), "sampling_params": sampling, "return_logprob": True, **options}
    return list(post(server.url, "/generate", **body))


@dataclass(frozen=True, kw_only=True, slots=True)
class Distance:
    """How far logprobs are from the twin's in float32, and the share of greedy tokens that are its own."""

    mean: float
    p99: float
    agreement: float


def logprobs(verdict: Verdict) -> list[float]:
    """List the twin's logprobs of a prompt, from its second token on, and of the tokens after it."""
    return [*verdict.prompt_logprobs, *verdict.logprobs]


def distance(got: Sequence[float], wanted: Sequence[float], same: Sequence[bool]) -> Distance:
    """Measure the differences between two lists of logprobs."""
    differences = sorted(abs(a - b) for a, b in zip(got, wanted, strict=True))
    return Distance(
        mean=statistics.fmean(differences),
        p99=differences[len(differences) * 99 // 100],
        agreement=statistics.fmean(same),
    )


def distances(prompts: Sequence[list[int]], outputs: Sequence[Mapping[str, Any]]) -> tuple[Distance, Distance]:
    """Measure the engine, and the twin in bfloat16, on the engine's tokens."""
    runs = [(prompt, tokens_of(dict(output))) for prompt, output in zip(prompts, outputs, strict=True)]
    exact, rounded = (judge(TRAINED, runs, dtype, "cuda") for dtype in (torch.float32, torch.bfloat16))
    engine, twin, wanted = [], [], []
    for output, verdict, in_bfloat16 in zip(outputs, exact, rounded, strict=True):
        meta = output["meta_info"]
        got = [logprob for logprob, *_ in [*meta["input_token_logprobs"][1:], *meta["output_token_logprobs"]]]
        # Where the prompt's own were not asked for, those of the continuation alone are compared.
        engine += got
        twin += logprobs(in_bfloat16)[-len(got) :]
        wanted += logprobs(verdict)[-len(got) :]
    chosen = [(a, b) for (_, tokens), v in zip(runs, exact, strict=True) for a, b in zip(tokens, v.tokens, strict=True)]
    both = [(a, b) for u, v in zip(rounded, exact, strict=True) for a, b in zip(u.tokens, v.tokens, strict=True)]
    return distance(engine, wanted, [a == b for a, b in chosen]), distance(twin, wanted, [a == b for a, b in both])


def assert_near(
    prompts: Sequence[list[int]], outputs: Sequence[Mapping[str, Any]], capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """Assert that the engine's answers are as near to the twin in float32 as bfloat16 allows, and print how near."""
    engine, twin = distances(prompts, outputs)
    with capsys.disabled():
        print(
            f"\n{what}: engine {engine.mean:.5f} mean, {engine.p99:.4f} p99, {engine.agreement:.2%} greedy;"
            f" transformers in bfloat16 {twin.mean:.5f}, {twin.p99:.4f}, {twin.agreement:.2%}"
        )
    assert engine.agreement >= 0.99
    assert engine.mean <= 1.2 * twin.mean
    assert engine.p99 <= 1.2 * twin.p99


@pytest.mark.parametrize("name", WANTED)
def test_bfloat16_is_as_exact_as_transformers(
    running: Mapping[str, Server], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = generate(running[name], PROMPTS, logprob_start_len=0)
    assert_near(PROMPTS, outputs, capsys, f"{name}, 256 prompts")


@pytest.mark.parametrize("name", ["triton", "drafts"])
def test_the_same_request_again_comes_from_the_cache(
    running: Mapping[str, Server], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    post(running[name].url, "/flush_cache")
    prompts = [HELD_OUT[20_000 + 50 * i : 20_000 + 50 * i + 65 + 3 * i] for i in range(32)]
    first, second = (generate(running[name], prompts) for _ in range(2))
    assert max(cached(first)) == 0
    assert cached(second) == [(len(prompt) - 1) // CHUNK * CHUNK for prompt in prompts]
    assert_near(prompts, second, capsys, f"{name}, from the cache")


def test_a_branch_continues_from_the_chunk_before_it(
    running: Mapping[str, Server], capsys: pytest.CaptureFixture[str]
) -> None:
    server = running["triton"]
    post(server.url, "/flush_cache")
    stem, places = HELD_OUT[3000:3300], [70 + 6 * i for i in range(32)]
    branches = [stem[:at] + HELD_OUT[5000 + 3 * at : 5040 + 3 * at] for at in places]
    others = [stem[:at] + HELD_OUT[9000 + 3 * at : 9040 + 3 * at] for at in places]
    generate(server, [stem])
    for branch in branches:
        generate(server, [branch])
    outputs = [generate(server, [other])[0] for other in others]
    assert cached(outputs) == [at // CHUNK * CHUNK for at in places]
    assert_near(others, outputs, capsys, "branches")


def test_a_conversation_continues_from_the_cache(
    running: Mapping[str, Server], capsys: pytest.CaptureFixture[str]
) -> None:
    server = running["flashinfer"]
    post(server.url, "/flush_cache")
    prompts = [HELD_OUT[11_000 + 60 * i : 11_000 + 60 * i + 100 + i] for i in range(16)]
    first = generate(server, prompts)
    turns = [prompt + tokens_of(output) + encode("\n\nSee also") for prompt, output in zip(prompts, first, strict=True)]
    second = generate(server, turns)
    # The state is kept at the end of a request; the last token it gave was never computed.
    assert cached(second) == [len(prompt) + 32 - 1 for prompt in prompts]
    assert_near(turns, second, capsys, "conversations")


def test_drafts_are_accepted_and_change_nothing(
    running: Mapping[str, Server], capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = PROMPTS[100:164]
    drafted, plain = (generate(running[name], prompts, tokens=64) for name in ("drafts", "triton"))
    verified = sum(output["meta_info"]["spec_verify_ct"] for output in drafted)
    length = sum(output["meta_info"]["completion_tokens"] for output in drafted) / verified
    same = statistics.fmean(tokens_of(a) == tokens_of(b) for a, b in zip(drafted, plain, strict=True))
    with capsys.disabled():
        print(
            f"\n{length:.2f} tokens a step with drafts of 3; {same:.0%} of the answers are the same to the last token"
        )
    assert 1.5 < length <= 4
    assert_near(prompts, drafted, capsys, "drafts, one after the other")


def test_padding_of_a_batch_changes_no_row(running: Mapping[str, Server]) -> None:
    # Graphs are captured for some sizes; five requests run in a larger one, whose other rows hold what was there.
    server = running["triton"]
    prompts = PROMPTS[200:205]
    answers = []
    for before in (PROMPTS[:32], PROMPTS[32:64]):
        generate(server, before)
        post(server.url, "/flush_cache")
        answers.append([tokens_of(output) for output in generate(server, prompts)])
    assert answers[0] == answers[1]
