"""Greedy decoding with a Transformers model: the tokens and logprobs that the engine must give."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from reference.cases import cases
from reference.checkpoints import SPECIAL_TOKENS, VOCAB_SIZE

LENGTHS = (1, 2, 3, 5, 8, 17, 31, 32, 63, 64, 65, 100, 130, 199, 256, 300)


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """A prompt and its greedy continuation, with natural logarithms of probabilities.

    - `prompt_logprobs[i]` is that of `prompt[i + 1]`.
    - `margins[i]` is how far the logit of `tokens[i]` is above the next one's.
    - `spread` is the largest difference between `logprobs`, taken token by token, and those of one pass over them all.

    A small margin is nearly a tie between tokens. A large spread comes from a tie inside the model, between experts.
    """

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    prompt_logprobs: list[float]
    margins: list[float]
    spread: float

    @property
    def text(self) -> str:
        """Give the continuation as text."""
        return decode(self.tokens)


def encode(text: str) -> list[int]:
    """Turn text into tokens, as the checkpoints' tokenizer does for text without special tokens."""
    return [byte + len(SPECIAL_TOKENS) for byte in text.encode()]


def decode(tokens: Sequence[int]) -> str:
    """Turn tokens of bytes back into text. Raises ValueError on a special token and on what is not UTF-8."""
    return bytes(token - len(SPECIAL_TOKENS) for token in tokens).decode()


def random_prompts() -> list[list[int]]:
    """Draw one prompt of random bytes for each of LENGTHS. The same on every run."""
    stream = random.Random(5)
    return [[stream.randrange(len(SPECIAL_TOKENS), VOCAB_SIZE) for _ in range(length)] for length in LENGTHS]


TEXT = "The quick brown fox jumps over"
QUESTION = "What does the overlay do?"
# As the checkpoints' chat template writes the question: the tokens 2 and 3 are <|im_start|> and <|im_end|>.
CHAT = [2, *encode("user\n" + QUESTION), 3, *encode("\n"), 2, *encode("assistant\n")]
PROMPTS = [*random_prompts(), encode(TEXT), CHAT]
MAX_NEW_TOKENS = 24


def answers(name: str, checkpoint: Path, prompts: Sequence[Sequence[int]]) -> Iterator[Completion]:
    """Continue prompts, one by one, with the reference model of a checkpoint of the case `name`, in float32."""
    model = cases()[name].load(checkpoint, torch.float32).eval()
    for prompt in prompts:
        yield complete(model, prompt, MAX_NEW_TOKENS)


def all_answers(name: str, checkpoint: Path, prompts: Sequence[Sequence[int]] = PROMPTS) -> list[Completion]:
    """Do `answers` at once, for another process."""
    return list(answers(name, checkpoint, prompts))


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a reference model says of tokens that an engine gave: its own choice at each place, and their logprobs.

    `margin` is how far its choices are above the next best, `router_margin` the same inside its routers.
    """

    tokens: list[int]
    logprobs: list[float]
    prompt_logprobs: list[float]
    margin: float
    router_margin: float


def vectors(name: str, checkpoint: Path) -> list[list[float]]:
    """Give the vectors of PROMPTS by the reference model of a checkpoint of the case `name`, in float32."""
    case = cases()[name]
    assert case.vector is not None
    model = case.load(checkpoint, torch.float32).eval()
    with torch.no_grad():
        return [case.vector(model, prompt).tolist() for prompt in PROMPTS]


def is_decided(answers: Sequence[Completion]) -> bool:
    """Tell whether rounding turns none of a reference model's answers to random weights."""
    return min(min(answer.margins) for answer in answers) > 2e-3 and max(answer.spread for answer in answers) < 1e-4


Run = tuple[Sequence[int], Sequence[int]] | tuple[Sequence[int], Sequence[bytes], Sequence[int]]


def judge(
    name: str, checkpoint: Path, runs: Sequence[Run], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[Verdict]:
    """Let the reference model of a checkpoint of the case `name` judge prompts and their continuations, a pass each.

    A run is a prompt, its pictures' files if the model takes any, and its continuation; the prompt has one token a
    picture. Tokens that equal the model's choice at every place are its greedy continuation. Its logits become float32,
    whatever the dtype in which it computes, as they do where transformers generates. A module of its with a `margin`
    notes there how near it is to another choice.
    """
    torch.set_num_threads(1)
    return judge_with(name, cases()[name].load(checkpoint, dtype), runs, device)


def judge_with(name: str, model: Any, runs: Sequence[Run], device: str = "cpu") -> list[Verdict]:  # noqa: ANN401
    """Do `judge` with a reference model of the case `name` that is loaded already."""
    case = cases()[name]
    model = model.eval().to(device)
    routers = [module for module in model.modules() if hasattr(module, "margin")]
    verdicts = []
    with torch.no_grad():
        for prompt, *files, tokens in runs:
            expanded, logits_of = case.ask(model, prompt, *files)
            verdicts.append(_verdict(expanded, tokens, routers, functools.partial(_on, device, logits_of)))
    return verdicts


def steps_with_drafts(name: str, checkpoint: Path, runs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[int]:
    """Say for prompts and their continuations how many steps these take with the draft's next token in each.

    The first token of a continuation comes with the prompt; a step gives one more, or two where the draft is right.
    """
    torch.set_num_threads(1)
    case = cases()[name]
    assert case.draft is not None
    model = case.load(checkpoint, torch.float32).eval()
    draft = case.draft(model, checkpoint).eval()
    found = []
    for prompt, continuation in runs:
        tokens = torch.tensor([[*prompt, *continuation]])
        with torch.no_grad():
            hidden = model(tokens[:, :-1], use_cache=False).hidden_states
            proposed = model.head(draft(model, hidden, tokens[:, 1:]))[0, :-1].argmax(-1)
        right = [False, False, *(proposed == tokens[0, 2:]).tolist()]
        steps, given = 0, 1
        while given < len(continuation):
            steps, given = steps + 1, given + 1 + right[len(prompt) + given]
        found.append(steps)
    return found


def _on(device: str, logits_of: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    return logits_of(tokens.to(device)).cpu()


def _verdict(
    prompt: Sequence[int],
    tokens: Sequence[int],
    routers: Sequence[Any],
    logits_of: Callable[[torch.Tensor], torch.Tensor],
) -> Verdict:
    for router in routers:
        router.margin = torch.inf
    logits = logits_of(torch.tensor([[*prompt, *tokens]]))[0, :-1].float()
    logprobs = logits.log_softmax(dim=-1)
    best = logits[len(prompt) - 1 :].topk(2, dim=-1)
    given = logprobs.gather(-1, torch.tensor([[*prompt, *tokens][1:]]).T)[:, 0].tolist()
    return Verdict(
        tokens=best.indices[:, 0].tolist(),
        logprobs=given[len(prompt) - 1 :],
        prompt_logprobs=given[: len(prompt) - 1],
        margin=min((best.values[:, 0] - best.values[:, 1]).tolist(), default=math.inf),
        router_margin=min((router.margin for router in routers), default=math.inf),
    )


def complete(model: PreTrainedModel, prompt: Sequence[int], max_new_tokens: int) -> Completion:
    """Continue `prompt` greedily by `max_new_tokens` tokens; the end token ends nothing."""
    tokens: list[int] = []
    logprobs: list[float] = []
    margins: list[float] = []
    with torch.no_grad():
        output = model(torch.tensor([list(prompt)]), use_cache=True)
        of_prompt = torch.log_softmax(output.logits[0], dim=-1)
        for _ in range(max_new_tokens):
            logits = output.logits[0, -1]
            first, second = logits.topk(2).values.tolist()
            token = int(logits.argmax())
            tokens.append(token)
            logprobs.append(torch.log_softmax(logits, dim=-1)[token].item())
            margins.append(first - second)
            output = model(torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True)
        at_once = torch.log_softmax(model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 :], dim=-1)
    return Completion(
        prompt=list(prompt),
        tokens=tokens,
        logprobs=logprobs,
        prompt_logprobs=[of_prompt[i, token].item() for i, token in enumerate(prompt[1:])],
        margins=margins,
        spread=max(abs(logprob - at_once[i, tokens[i]].item()) for i, logprob in enumerate(logprobs)),
    )
