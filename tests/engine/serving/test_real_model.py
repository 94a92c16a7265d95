"""A real model, which nobody here has made, answers as Transformers does: the one that `serve` takes by itself.

Its GGUF file is read as any other is: what is compared is what becomes of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from overlay_tools.checkpoints import demo_model
from overlay_tools.engines.loopback import openai_client
from overlay_tools.engines.server import Server
from overlay_tools.settings import load_project
from reference.greedy import judge

from engine.harness import STOCK, flush, generate, server, tokens_of

ROOT = Path(__file__).parents[3]
TEXTS = [
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time, there was a",
    "def fibonacci(n):",
    "The three primary colours are",
    "To be, or not to be,",
    "The largest planet of the solar system is",
    "A good recipe for bread begins with",
    "1, 2, 3, 4, 5,",
    "Dear Sir or Madam,",
    "SELECT name FROM",
    "The opposite of hot is",
]
QUESTIONS = [
    "What is the capital of France?",
    "Name three fruits.",
    "What is two plus two?",
    "Why is the sky blue?",
    "Write a sentence about a cat.",
    "Who wrote Hamlet?",
    "What colour is grass?",
    "How many days has a week?",
    "Translate 'good morning' into Spanish.",
    "What is a computer?",
    "Give me a rhyme for 'moon'.",
    "Is ice cold or hot?",
]


@pytest.fixture(scope="module")
def demo() -> demo_model.Demo:
    """Fetch and convert the model, unless it is in the cache."""
    project = load_project(ROOT)
    found = demo_model.prepare(project, Path(sys.executable))
    assert found == demo_model.planned(project), "the index does not have it"
    return found


@pytest.fixture(scope="module")
def prompts(demo: demo_model.Demo) -> list[list[int]]:
    """Write texts and chats as tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo.folder)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    written = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    return [tokenizer.encode(text, add_special_tokens=False) for text in [*TEXTS, *written]]


@pytest.fixture(scope="module")
def running(demo: demo_model.Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a server of it, with what `serve` gives it."""
    described = server(demo.folder, tmp_path_factory.mktemp("real") / "log")
    described.flags = [*described.flags, *demo.flags]
    with described:
        yield described


def test_it_answers_as_transformers_does(
    demo: demo_model.Demo,
    running: Server,
    prompts: list[list[int]],
    reference_process: ProcessPoolExecutor,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flush(running)
    alone = [generate(running, [prompt], 16)[0] for prompt in prompts[::6]]
    at_once = generate(running, prompts, 16)  # some of them from the cache
    outputs = [*alone, *at_once]
    runs = [(prompt, tokens_of(output)) for prompt, output in zip([*prompts[::6], *prompts], outputs, strict=True)]
    verdicts = reference_process.submit(judge, STOCK, demo.folder, runs).result()
    decided, largest = 0, 0.0
    for (_, tokens), output, verdict in zip(runs, outputs, verdicts, strict=True):
        got = [logprob for logprob, *_ in output["meta_info"]["output_token_logprobs"]]
        if verdict.margin > 1e-3:
            decided += 1
            assert tokens == verdict.tokens
        assert got == pytest.approx(verdict.logprobs, abs=1e-3, rel=0)
        largest = max(largest, *(abs(a - b) for a, b in zip(got, verdict.logprobs, strict=True)))
    assert decided >= 0.8 * len(runs)
    with capsys.disabled():
        print(f"\n{demo_model.NAME}: {decided} of {len(runs)} answers decided, logprobs within {largest:.0e}")


def test_its_chats_end_by_themselves(running: Server) -> None:
    client = openai_client(running.url, timeout=120)
    messages = [{"role": "user", "content": QUESTIONS[0]}]
    answer = client.chat.completions.create(
        model=str(running.model), messages=messages, temperature=0, max_tokens=40
    ).choices[0]
    assert "Paris" in answer.message.content
    assert answer.finish_reason == "stop"
