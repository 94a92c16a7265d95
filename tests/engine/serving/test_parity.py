"""The engine gives the tokens and logprobs of the reference model: the overlay's model, and upstream's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from engine.harness import CHECKPOINTS, SAMPLING, Model, OfflineEngine, assert_answers, running_engine

SPAWNED = next(iter(CHECKPOINTS), "")  # one start as it is for users; a project may have none of them


@pytest.fixture(scope="module", params=CHECKPOINTS)
def served(
    request: pytest.FixtureRequest, models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[OfflineEngine, Model]]:
    """Run one model after the other, each for all tests of this module."""
    model = models[request.param]
    log = tmp_path_factory.mktemp("engine") / "log"
    with running_engine(model.path, log, spawned=request.param == SPAWNED) as engine:
        yield engine, model


def generate(engine: OfflineEngine, model: Model, **options: object) -> list[dict[str, Any]]:
    """Send all prompts of a model in one batch."""
    prompts = [answer.prompt for answer in model.answers]
    return list(engine.generate(input_ids=prompts, sampling_params=SAMPLING, return_logprob=True, **options))


def test_a_prompt_continues_from_one_that_is_its_start(served: tuple[OfflineEngine, Model]) -> None:
    engine, model = served  # the first test of a model: nothing is cached yet
    answer = max(model.answers, key=lambda answer: len(answer.prompt))
    start = answer.prompt[:200]
    engine.generate(input_ids=start, sampling_params=SAMPLING)
    output = engine.generate(input_ids=answer.prompt, sampling_params=SAMPLING, return_logprob=True)
    assert_answers([output], [answer])
    # A state is kept where the prompt ends, or the last chunk of 64 tokens.
    assert output["meta_info"]["cached_tokens"] in ([200, 192] if model.case.state else [200])


def test_one_by_one_then_again_from_the_prefix_cache(served: tuple[OfflineEngine, Model]) -> None:
    engine, model = served
    first, second = (
        [engine.generate(input_ids=x.prompt, sampling_params=SAMPLING, return_logprob=True) for x in model.answers]
        for _ in range(2)
    )
    assert_answers(first, model.answers)
    assert_answers(second, model.answers)
    cached = [output["meta_info"]["cached_tokens"] for output in second]
    if model.case.state:  # which is kept at some lengths only, by rules that differ between releases
        assert max(cached) > 0
    else:
        assert cached == [len(answer.prompt) - 1 for answer in model.answers]


def test_in_one_batch_from_the_prefix_cache(served: tuple[OfflineEngine, Model]) -> None:
    engine, model = served
    assert_answers(generate(engine, model), model.answers)


def test_in_one_batch_with_prompt_logprobs(served: tuple[OfflineEngine, Model]) -> None:
    engine, model = served
    # A prompt whose logprobs are asked for from the start is computed whole, whatever is cached.
    assert_answers(generate(engine, model, logprob_start_len=0), model.answers, prompt_from=0)


def test_prompt_logprobs_from_the_middle(served: tuple[OfflineEngine, Model]) -> None:
    engine, model = served
    answer = max(model.answers, key=lambda answer: len(answer.prompt))
    half = len(answer.prompt) // 2
    output = engine.generate(
        input_ids=answer.prompt, sampling_params=SAMPLING, return_logprob=True, logprob_start_len=half
    )
    assert_answers([output], [answer], prompt_from=half)
