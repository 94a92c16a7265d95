"""The models under test with the answers of their twins, and ways to run the engine on them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from overlay_tools import cpu_engine
from reference.greedy import Completion, encode, random_prompts

MAX_NEW_TOKENS = 24
SAMPLING = {"temperature": 0, "max_new_tokens": MAX_NEW_TOKENS, "ignore_eos": True}


CASES: dict[str, tuple[str, dict[str, object]]] = {  # a name: the kind of checkpoint, changes to its config.json
    "LlamaLogitShaping, none": ("llama-logit-shaping", {"logit_transform": None, "logit_softcap": None}),
    "LlamaLogitShaping, softcap": ("llama-logit-shaping", {}),
    "LlamaLogitShaping, sqrt_positive": (
        "llama-logit-shaping",
        {"logit_transform": "sqrt_positive", "logit_softcap": None},
    ),
    "Llama": ("llama", {}),
    "Qwen3-Next": ("qwen3-next", {}),
}

TEXT = "The quick brown fox jumps over"
QUESTION = "What does the overlay do?"
# As the checkpoints' chat template writes the question: the tokens 2 and 3 are <|im_start|> and <|im_end|>.
CHAT = [2, *encode("user\n" + QUESTION), 3, *encode("\n"), 2, *encode("assistant\n")]
PROMPTS = [*random_prompts(), encode(TEXT), CHAT]


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A checkpoint and its twin's greedy answers to PROMPTS."""

    path: Path
    answers: list[Completion]

    def answer_to(self, prompt: list[int]) -> Completion:
        """Find the answer to one of PROMPTS."""
        return self.answers[PROMPTS.index(prompt)]


@contextmanager
def running_engine(path: Path) -> Iterator[Any]:
    """Run `sglang.Engine` on a checkpoint."""
    import sglang

    engine = sglang.Engine(model_path=str(path), log_level="error", **cpu_engine.ARGS)
    try:
        yield engine
    finally:
        engine.shutdown()


@contextmanager
def running_server(path: Path, log: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `sglang.launch_server` on a checkpoint, its output in the file `log`; give the process and its address.

    It is not waited for: it may still be starting, or be dead.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sglang.launch_server", *cpu_engine.flags(cpu_engine.ARGS)]
    command += ["--model-path", str(path), "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | environment, start_new_session=True
        )
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the server and all its children
            process.wait()


def assert_answers(outputs: Sequence[Mapping[str, Any]], answers: Sequence[Completion], prompt_from: int = 0) -> None:
    """Assert that the engine's outputs have the twin's tokens and logprobs, of the output and of the prompt if given.

    `prompt_from` is the `logprob_start_len` of the requests: the first prompt token that has a logprob, at its earliest
    the second one. Logprobs may differ by 1e-3.
    """
    assert len(outputs) == len(answers)
    for output, answer in zip(outputs, answers, strict=True):
        meta = output["meta_info"]
        length = len(answer.prompt)
        assert [token for _, token, *_ in meta["output_token_logprobs"]] == answer.tokens, f"prompt of {length} tokens"
        got = [logprob for logprob, *_ in meta["output_token_logprobs"]]
        assert got == pytest.approx(answer.logprobs, abs=1e-3, rel=0), f"output logprobs, prompt of {length} tokens"
        if meta.get("input_token_logprobs"):
            got = [
                logprob for logprob, *_ in meta["input_token_logprobs"][1:]
            ]  # none for the first, by upstream's rule
            wanted = answer.prompt_logprobs[prompt_from:]
            assert got == pytest.approx(wanted, abs=1e-3, rel=0), f"prompt logprobs, prompt of {length} tokens"
