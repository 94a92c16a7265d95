"""The HTTP server gives the reference model's answers too: through its own API and through the openai client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from overlay_tools.engines.loopback import openai_client
from reference.greedy import CHAT, MAX_NEW_TOKENS, QUESTION, TEXT, encode

from engine.harness import (
    AS_FOR_USERS,
    CHECKPOINTS,
    SAMPLING,
    SERVED,
    SPAWN,
    Model,
    assert_answers,
    post,
    server,
)


@pytest.fixture(scope="module", params=SERVED)
def served(
    request: pytest.FixtureRequest, models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Model]]:
    """Run a server, of each kind of model one as users do; give its address and the model."""
    model = models[request.param]
    log = tmp_path_factory.mktemp("server") / "log"
    with server(model.path, log, env=SPAWN if CHECKPOINTS[request.param][0] in AS_FOR_USERS else {}) as running:
        yield running.url, model


def generate(address: str, **request: object) -> Any:  # noqa: ANN401
    """Ask the native API."""
    return post(address, "/generate", sampling_params=SAMPLING, return_logprob=True, **request)


def client(address: str) -> OpenAI:
    """Make a client of the OpenAI-compatible API."""
    return openai_client(address, timeout=120)


def test_generate(served: tuple[str, Model]) -> None:
    address, model = served
    for _ in range(2):
        outputs = [generate(address, input_ids=answer.prompt) for answer in model.answers]
        assert_answers(outputs, model.answers)
        assert [output["text"] for output in outputs] == [answer.text for answer in model.answers]
    assert [output["meta_info"]["cached_tokens"] for output in outputs] == [len(x.prompt) - 1 for x in model.answers]


def test_generate_batch_with_prompt_logprobs(served: tuple[str, Model]) -> None:
    address, model = served
    outputs = generate(address, input_ids=[answer.prompt for answer in model.answers], logprob_start_len=0)
    assert_answers(outputs, model.answers, prompt_from=0)


def test_openai_completion(served: tuple[str, Model]) -> None:
    address, model = served
    answer = model.answer_to(encode(TEXT))
    completion = client(address).completions.create(
        model=str(model.path),
        prompt=TEXT,
        temperature=0,
        max_tokens=MAX_NEW_TOKENS,
        logprobs=1,
        extra_body={"ignore_eos": True},
    )
    [choice] = completion.choices
    assert choice.text == answer.text
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == pytest.approx(answer.logprobs, abs=1e-3, rel=0)
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == len(answer.prompt)
    assert completion.usage.completion_tokens == MAX_NEW_TOKENS


def test_openai_streamed_chat(served: tuple[str, Model]) -> None:
    address, model = served
    answer = model.answer_to(CHAT)
    stream = client(address).chat.completions.create(
        model=str(model.path),
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=MAX_NEW_TOKENS,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == answer.text
    assert len(pieces) > 1  # it did come as a stream


def test_models_lists_the_checkpoint(served: tuple[str, Model]) -> None:
    address, model = served
    assert [entry.id for entry in client(address).models.list()] == [str(model.path)]
