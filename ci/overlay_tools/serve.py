"""Ask a running server as a user would, through the OpenAI client, and show what it answers."""

from __future__ import annotations

import time

from overlay_tools import report
from overlay_tools.errors import ServeError
from overlay_tools.server import Server

_PROMPT = "The capital of France is"
_TOKENS = 32


def ask(server: Server) -> None:
    """Send a completion and a streamed chat; show prompt, answer and timings.

    Raises ServeError if an answer is an error or empty, or the server dies.
    """
    import openai

    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=300, max_retries=0)
    try:
        model = client.models.list().data[0].id
        _complete(client, model)
        _chat(client, model)
    except openai.OpenAIError as error:
        server.check()
        raise server.failure(f"The server answered with an error: {error}") from None


def _complete(client, model: str) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    started = time.perf_counter()
    answer = client.completions.create(model=model, prompt=_PROMPT, max_tokens=_TOKENS, temperature=0)
    seconds = time.perf_counter() - started
    _show("completion", _PROMPT, answer.choices[0].text, answer.usage.completion_tokens, seconds, None)


def _chat(client, model: str) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    started = time.perf_counter()
    first, pieces, tokens = None, [], 0
    for chunk in client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": _PROMPT}],
        max_tokens=_TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ):
        if chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            if choice.delta.content:
                first = first or time.perf_counter() - started
                pieces.append(choice.delta.content)
    _show("streamed chat", _PROMPT, "".join(pieces), tokens, time.perf_counter() - started, first)


def _show(kind: str, prompt: str, answer: str, tokens: int, seconds: float, first: float | None) -> None:
    if not tokens or not answer:
        raise ServeError(f"The {kind} came back empty.", hint="See the server's log.")
    timings = f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.0f} tokens/s"
    if first is not None:
        timings += f", first after {first:.2f} s"
    report.table(kind, [("prompt", repr(prompt)), ("answer", repr(answer)), ("timings", timings)])
