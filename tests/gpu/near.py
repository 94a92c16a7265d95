"""How near an engine in bfloat16 is to its reference model in float32, beside how near that is in bfloat16."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from engine.harness import CHUNK, HELD_OUT, cached, generate, post, tokens_of
from overlay_tools.engines.server import Server
from reference.cases import cases
from reference.greedy import Verdict, judge

Runs = Sequence[tuple[Sequence[int], Sequence[int]]]
Outputs = Sequence[dict[str, Any]]
Servers = Mapping[str, Server]

WORKERS = 4  # processes of reference models

# The models that are tested: a trained one's answers are peaked, and these have a state beside the cache, and a draft.
MODELS = [
    name
    for name, case in cases().items()
    if case.trained is not None and case.widen is not None and case.state and "drafts" in case.servers
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Distance:
    """How far logprobs are from the reference model's in float32, and the share of greedy tokens that are its own."""

    mean: float
    p99: float
    agreement: float

    def __str__(self) -> str:
        return f"{self.mean:.5f} in the mean, {self.p99:.4f} at the 99th of 100, {self.agreement:.2%} of greedy tokens"


def distance(got: Sequence[float], wanted: Sequence[float], same: Sequence[bool]) -> Distance:
    """Measure the differences between two lists of logprobs."""
    differences = sorted(abs(a - b) for a, b in zip(got, wanted, strict=True))
    return Distance(
        mean=statistics.fmean(differences),
        p99=differences[len(differences) * 99 // 100],
        agreement=statistics.fmean(same),
    )


def ask_again(server: Server) -> tuple[list[list[int]], list[dict[str, Any]]]:
    """Send prompts twice, and give them with the second outputs, which came from the cache as far as states are kept.

    One state is kept, where the last whole chunk ends; the last token of a prompt is always computed.
    """
    post(server.url, "/flush_cache")
    prompts = [HELD_OUT[250 * i : 250 * i + 65 + 3 * i] for i in range(64)]
    first, second = (generate(server, prompts, 32) for _ in range(2))
    assert max(cached(first)) == 0
    kept = [len(prompt) // CHUNK * CHUNK for prompt in prompts]
    assert cached(second) == [at if at < len(prompt) else 0 for at, prompt in zip(kept, prompts, strict=True)]
    return prompts, second


class ReferenceModel:
    """The reference model of a checkpoint, in several processes on the GPU: one mostly waits for its own Python."""

    def __init__(
        self, name: str, checkpoint: Path, pool: ProcessPoolExecutor, judge: Callable[..., list[Verdict]] = judge
    ) -> None:
        self.name, self.checkpoint, self._pool, self._judge = name, checkpoint, pool, judge

    def of(self, checkpoint: Path) -> ReferenceModel:
        """Give the same model of another checkpoint."""
        return ReferenceModel(self.name, checkpoint, self._pool, self._judge)

    def judge(self, runs: Runs, dtype: torch.dtype) -> list[Verdict]:
        """Judge runs as `reference.greedy.judge` does."""
        parts = [runs[i::WORKERS] for i in range(WORKERS)]
        futures = [self._pool.submit(self._judge, self.name, self.checkpoint, part, dtype, "cuda") for part in parts]
        verdicts = [future.result() for future in futures]
        return [verdicts[i % WORKERS][i // WORKERS] for i in range(len(runs))]

    def distances(self, prompts: Sequence[list[int]], outputs: Outputs) -> tuple[Distance, Distance]:
        """Measure the engine, and the reference model in bfloat16 on the engine's tokens."""
        runs = [(prompt, tokens_of(output)) for prompt, output in zip(prompts, outputs, strict=True)]
        exact, rounded = (self.judge(runs, dtype) for dtype in (torch.float32, torch.bfloat16))
        engine: list[float] = []
        transformers: list[float] = []
        wanted: list[float] = []
        for output, in_float32, in_bfloat16 in zip(outputs, exact, rounded, strict=True):
            meta = output["meta_info"]
            # Where the prompt's own were not asked for, those of the continuation alone are compared.
            got = [logprob for logprob, *_ in [*meta["input_token_logprobs"][1:], *meta["output_token_logprobs"]]]
            engine += got
            transformers += [*in_bfloat16.prompt_logprobs, *in_bfloat16.logprobs][-len(got) :]
            wanted += [*in_float32.prompt_logprobs, *in_float32.logprobs][-len(got) :]
        greedy, others = ([token for verdict in verdicts for token in verdict.tokens] for verdicts in (exact, rounded))
        given = [token for _, tokens in runs for token in tokens]
        same_given, same_others = ([a == b for a, b in zip(of, greedy, strict=True)] for of in (given, others))
        return distance(engine, wanted, same_given), distance(transformers, wanted, same_others)

    def assert_near(
        self,
        prompts: Sequence[list[int]],
        outputs: Outputs,
        show: Callable[[str], None],
        what: str,
        less_right: float | None = None,
    ) -> None:
        """Assert that answers are at most 1.2 times as far from the reference model in float32 as it is in bfloat16.

        And that at least 99 of 100 greedy tokens are those of the model in float32; or, with `less_right`, a share that
        is at most so much smaller than that of the model in bfloat16. Shows all figures.
        """
        engine, transformers = self.distances(prompts, outputs)
        show(f"{what}\n    engine        {engine}\n    transformers  {transformers}")
        assert engine.agreement >= (0.99 if less_right is None else transformers.agreement - less_right)
        assert engine.mean <= 1.2 * transformers.mean
        assert engine.p99 <= 1.2 * transformers.p99
