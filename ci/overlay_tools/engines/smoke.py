"""Ask a running server as a user would, through the OpenAI client, and show what it answers."""

from __future__ import annotations

import base64
import json
import mimetypes
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overlay_tools import console
from overlay_tools.engines.loopback import open_directly, openai_client
from overlay_tools.engines.server import Server
from overlay_tools.errors import ServeError

if TYPE_CHECKING:
    import openai

_TOKENS = 32
_ALLOWED = "SGLANG_OVERLAY_ALLOWED_LOCAL_MEDIA_PATH"  # overlay/sglang/srt/multimodal/pictures.py reads it


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """What a model is asked: to go on with `prompt`, to answer `question`, and `look` of a picture."""

    prompt: str = "The capital of France is"
    question: str = "What is the capital of France?"
    look: str = "What is this?"


def ask(server: Server, questions: Questions, folder: Path, picture: Path | None = None) -> None:
    """Ask a model for all that it gives; show prompt, answer and timings.

    That is a completion, a streamed chat and, if it takes some, what a picture shows; or the vectors of two texts.

    Parameters: `folder`, where the server may read pictures, which takes a copy of the one that is shown; `picture`,
    its file, None for a red square.
    Raises ServeError if an answer is an error or has no tokens, or the server dies.
    """
    import openai

    client = openai_client(server.url, timeout=300)
    try:
        about = _about(server)
        model = client.models.list().data[0].id
        if not about.get("is_generation", True):
            _embed(client, model, questions)
            return
        _complete(client, model, questions.prompt)
        try:
            _chat(client, model, questions.question)
        except openai.BadRequestError as error:
            if "chat template" not in str(error).lower():
                raise
            console.line("It has no chat template: completions only.")
            return
        if picture is not None or about.get("has_image_understanding"):
            _look(client, model, questions.look, _picture_in(folder, picture))
    except (openai.OpenAIError, OSError) as error:
        server.check()
        raise server.failure(f"The server answered with an error: {error}") from None


def _about(server: Server) -> dict[str, Any]:
    """Return what a server says of its model."""
    with open_directly(f"{server.url}/model_info", timeout=60) as answer:
        return dict(json.load(answer))


def media_environment(folder: Path) -> dict[str, str]:
    """Return what lets a server read pictures in a folder by their path, beside what this environment lets it."""
    folder.mkdir(parents=True, exist_ok=True)
    allowed = [*filter(None, [os.environ.get(_ALLOWED)]), str(folder.resolve())]
    return {_ALLOWED: os.pathsep.join(allowed)}


def _picture_in(folder: Path, picture: Path | None) -> Path:
    """Return a copy of a picture in a folder, or of a red square."""
    if picture is not None:
        return Path(shutil.copy(picture, folder))

    from PIL import Image, ImageDraw

    path = folder / "red-square.png"
    image = Image.new("RGB", (64, 64), "gray")
    ImageDraw.Draw(image).rectangle((16, 16, 47, 47), fill=(220, 30, 30))
    image.save(path)
    return path


def _embed(client: openai.OpenAI, model: str, questions: Questions) -> None:
    texts = [questions.prompt, questions.question]
    started = time.perf_counter()
    answer = client.embeddings.create(model=model, input=texts, encoding_format="float")
    seconds = time.perf_counter() - started
    for text, one in zip(texts, answer.data, strict=True):
        begin = ", ".join(f"{value:.4f}" for value in one.embedding[:4])
        shown = f"{begin}{', ...' if len(one.embedding) > 4 else ''} ({len(one.embedding)} values)"
        console.table("vector", [("text", repr(text)), ("answer", shown), ("timings", f"both in {seconds:.2f} s")])


def _look(client: openai.OpenAI, model: str, question: str, picture: Path) -> None:
    data = base64.b64encode(picture.read_bytes()).decode()
    kind, _ = mimetypes.guess_type(picture.name)
    for name, url in {"base64": f"data:{kind};base64,{data}", "path": str(picture.resolve())}.items():
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        started = time.perf_counter()
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": content}], max_tokens=_TOKENS, temperature=0
        )
        seconds = time.perf_counter() - started
        text, tokens = _text(answer.choices[0].message), answer.usage.completion_tokens
        _show(f"picture, by {name}", f"{picture.name}: {question}", text, tokens, seconds, None)


def _complete(client: openai.OpenAI, model: str, prompt: str) -> None:
    started = time.perf_counter()
    answer = client.completions.create(model=model, prompt=prompt, max_tokens=_TOKENS, temperature=0)
    seconds = time.perf_counter() - started
    _show("completion", prompt, answer.choices[0].text, answer.usage.completion_tokens, seconds, None)


def _chat(client: openai.OpenAI, model: str, question: str) -> None:
    started = time.perf_counter()
    first, pieces, tokens = None, [], 0
    for chunk in client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=_TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ):
        if chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            if piece := _text(choice.delta):
                first = first or time.perf_counter() - started
                pieces.append(piece)
    _show("streamed chat", question, "".join(pieces), tokens, time.perf_counter() - started, first)


def _text(said: Any) -> str:  # noqa: ANN401  # a message, or a piece of one
    # What a reasoning parser takes out comes by itself, and at first nothing else does.
    return said.content or getattr(said, "reasoning_content", None) or ""


def _show(kind: str, prompt: str, answer: str, tokens: int, seconds: float, first: float | None) -> None:
    if not tokens:  # with some, an empty text is the model's own: its first token may be its end
        raise ServeError(f"The {kind} came back empty.", hint="See the server's log.")
    timings = f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.0f} tokens/s"
    if first is not None:
        timings += f", first after {first:.2f} s"
    console.table(kind, [("prompt", repr(prompt)), ("answer", repr(answer)), ("timings", timings)])
