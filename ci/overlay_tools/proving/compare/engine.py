"""Ask an engine for greedy answers with logprobs, in the ways in which it computes one and the same thing."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from overlay_tools import console
from overlay_tools.engines.loopback import post
from overlay_tools.engines.server import Server
from overlay_tools.errors import CompareError
from overlay_tools.proving.reference import Prompt

TOP = 20  # of the likeliest tokens at each place
_LONGEST = 3600.0  # seconds that an answer may take
_PARTS = 4  # of what is asked plainly, that take about as long as each other
_LOOKS = 100  # at whether a server is idle

Top = list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Tokens, of which the engine has given logprobs from the place `start` on.

    - `tokens`: a prompt, and what the engine has added; `prompt`: what the engine was asked.
    - `start`: the place of the first token with a logprob; `logprobs` and `top`, the likeliest tokens there with
      theirs, are of this place and those after it.
    - `chosen`: the place of the first token that the engine has chosen itself.
    - `cached`: how many tokens came from the cache; `drafted`: tokens a step, where drafts were made.
    """

    prompt: Prompt
    tokens: list[int]
    start: int
    chosen: int
    logprobs: list[float]
    top: list[Top]
    cached: int = 0
    drafted: float | None = None


def ask_plainly(server: Server, prompts: Sequence[Prompt], tokens: int) -> Iterator[tuple[str, list[Answer]]]:
    """Ask for each prompt alone, then from the cache, at once, and as the prompt that prompt and answer make."""
    whole = _each(server, prompts, tokens, 0, logprob_start_len=0)
    yield "prefill", [_of_prompt(prompt, output) for prompt, output in zip(prompts, whole, strict=True)]
    decoded = [_of_answer(prompt, output) for prompt, output in zip(prompts, whole, strict=True)]
    yield "decode", decoded
    again = _each(server, prompts, tokens, 1)
    yield "from the cache", [_of_answer(prompt, output) for prompt, output in zip(prompts, again, strict=True)]
    turns = [prompt.then(answer.tokens[answer.chosen :]) for prompt, answer in zip(prompts, decoded, strict=True)]
    further = _each(server, turns, tokens, 2)
    yield "further turn", [_of_answer(turn, output) for turn, output in zip(turns, further, strict=True)]
    outputs = _generate(server, turns, 1, logprob_start_len=0)
    read = [_of_prompt(turn, output) for turn, output in zip(turns, outputs, strict=True)]
    yield "answer as prompt", [_from(answer, of.chosen) for answer, of in zip(read, decoded, strict=True)]
    _flush(server)
    yield "in a batch", ask_at_once(server, prompts, tokens)


def _each(server: Server, prompts: Sequence[Prompt], tokens: int, part: int, **options: object) -> list[dict[str, Any]]:
    """Ask for the prompts one after another, as one of the parts of all that is asked."""
    outputs = []
    for number, prompt in enumerate(prompts):
        console.progress(part * len(prompts) + number, _PARTS * len(prompts))
        outputs += _generate(server, [prompt], tokens, **options)
    return outputs


def ask_at_once(server: Server, prompts: Sequence[Prompt], tokens: int, *, distributions: bool = True) -> list[Answer]:
    """Ask for all prompts in one request; `distributions`, whether for the likeliest tokens too, `top`."""
    outputs = _generate(server, prompts, tokens, top_logprobs_num=TOP if distributions else 0)
    return [_of_answer(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Vectors:
    """The vectors of prompts, and how many of their tokens came from the cache, None where the engine tells nothing."""

    values: list[list[float]]
    cached: int | None


def ask_for_vectors(server: Server, prompts: Sequence[Prompt]) -> Iterator[tuple[str, Vectors]]:
    """Ask for the vector of each prompt alone, then from the cache, and of all at once."""
    for way in ("alone", "from the cache"):
        yield way, ask_for_each(server, [[prompt] for prompt in prompts])
    _flush(server)
    yield "in a batch", ask_for_each(server, [prompts])


def ask_for_each(server: Server, requests: Sequence[Sequence[Prompt]]) -> Vectors:
    """Ask for the vectors of prompts, in requests one after another.

    An answer does not say what came from the cache. The log does, unless a person has told the engine to be quiet.
    """
    start = server.log.stat().st_size
    values: list[list[float]] = []
    for number, prompts in enumerate(requests):
        console.progress(number, len(requests))
        values += embed(server, prompts)
    with server.log.open("rb") as log:
        log.seek(start)
        said = re.findall(rb"#cached-token: (\d+)", log.read())
    return Vectors(values=values, cached=sum(map(int, said)) if said else None)


def embed(server: Server, prompts: Sequence[Prompt]) -> list[list[float]]:
    """Ask for the vectors of prompts in one request."""
    return [
        answer["embedding"] for answer in _post(server, "/encode", {"input_ids": [prompt.tokens for prompt in prompts]})
    ]


def ask_one_by_one(server: Server, prompts: Sequence[Prompt], tokens: int) -> list[Answer]:
    """Ask for the prompts one after another."""
    answers = []
    for number, prompt in enumerate(prompts):
        console.progress(number, len(prompts))
        answers += ask_at_once(server, [prompt], tokens)
    return answers


def _generate(server: Server, prompts: Sequence[Prompt], tokens: int, **options: object) -> list[dict[str, Any]]:
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    ids = [prompt.asked for prompt in prompts]
    body = {"input_ids": ids, "sampling_params": sampling, "return_logprob": True, "top_logprobs_num": TOP, **options}
    if any(prompt.images for prompt in prompts):
        body["image_data"] = [[_written(Path(image)) for image in prompt.images] for prompt in prompts]
    outputs = list(_post(server, "/generate", body))
    for prompt, output in zip(prompts, outputs, strict=True):
        if (count := output["meta_info"]["prompt_tokens"]) != len(prompt.tokens):
            raise CompareError(
                f"The engine reads {count} tokens where the reference model reads {len(prompt.tokens)}:"
                f" {prompt.text or prompt.tokens[:8]!r}.",
                hint="Its tokenizer, or what it makes of pictures, is another.",
            )
    return outputs


def _written(picture: Path) -> str:
    """Write a picture's file as text."""
    return base64.b64encode(picture.read_bytes()).decode()


def _post(server: Server, path: str, body: Mapping[str, object]) -> Any:  # noqa: ANN401  # whatever JSON comes back
    try:
        return post(server.url + path, body, timeout=_LONGEST)
    except HTTPError as error:
        said = error.read().decode("utf-8", "replace").strip()
        raise CompareError(f"The server refuses a request: {said or error}", hint=f"See {server.log}.") from None
    except OSError as error:
        server.check()
        raise server.failure(f"The server does not answer: {error}") from None


def _flush(server: Server) -> None:
    """Empty the caches, as soon as the server is idle: it refuses to before."""
    for _ in range(_LOOKS):
        try:
            post(f"{server.url}/flush_cache", {}, timeout=60)
        except HTTPError:
            time.sleep(0.1)
        else:
            return
    raise server.failure("The server does not flush its cache")


def _of_prompt(prompt: Prompt, output: Mapping[str, Any]) -> Answer:
    """Read the logprobs of a prompt: the first token has none."""
    meta = output["meta_info"]
    return Answer(
        prompt=prompt,
        tokens=prompt.tokens,
        start=1,
        chosen=len(prompt.tokens),
        logprobs=[logprob for logprob, *_ in meta["input_token_logprobs"][1:]],
        top=[_top(one) for one in meta["input_top_logprobs"][1:]],
        cached=meta["cached_tokens"],
    )


def _of_answer(prompt: Prompt, output: Mapping[str, Any]) -> Answer:
    meta = output["meta_info"]
    verified = meta.get("spec_verify_ct")
    return Answer(
        prompt=prompt,
        tokens=prompt.tokens + [token for _, token, *_ in meta["output_token_logprobs"]],
        start=len(prompt.tokens),
        chosen=len(prompt.tokens),
        logprobs=[logprob for logprob, *_ in meta["output_token_logprobs"]],
        top=[_top(one) for one in meta.get("output_top_logprobs") or [None] * len(meta["output_token_logprobs"])],
        cached=meta["cached_tokens"],
        drafted=meta["completion_tokens"] / verified if verified else None,
    )


def _top(rows: Sequence[Sequence[Any]] | None) -> Top:
    return [(token, logprob) for logprob, token, *_ in rows or []]


def _from(answer: Answer, place: int) -> Answer:
    """Leave out the logprobs before a place."""
    left = place - answer.start
    return replace(answer, start=place, logprobs=answer.logprobs[left:], top=answer.top[left:])
