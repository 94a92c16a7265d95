"""Ask a running server as a user would, through the OpenAI client, and show what it answers."""

from __future__ import annotations

import base64
import json
import mimetypes
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from overlay_tools import console
from overlay_tools.engines.loopback import openai_client
from overlay_tools.engines.server import Server
from overlay_tools.errors import ServeError
from overlay_tools.user_files import read_text

if TYPE_CHECKING:
    import openai

_PROMPT = "The capital of France is"
_QUESTION = "What is this?"
_TOKENS = 32
_ALLOWED = "SGLANG_OVERLAY_ALLOWED_LOCAL_MEDIA_PATH"  # overlay/sglang/srt/multimodal/pictures.py reads it


def ask(server: Server, folder: Path, picture: Path | None = None) -> None:
    """Send a completion, a streamed chat and, if the model takes them, a picture; show prompt, answer and timings.

    Parameters: `folder`, where the server may read pictures, which takes a copy of the one that is shown; `picture`,
    its file, None for a red square.
    Raises ServeError if an answer is an error or empty, or the server dies.
    """
    import openai

    client = openai_client(server.url, timeout=300)
    try:
        model = client.models.list().data[0].id
        _complete(client, model)
        _chat(client, model)
        if picture is not None or takes_pictures(server.model):
            _look(client, model, _picture_in(folder, picture))
    except openai.OpenAIError as error:
        server.check()
        raise server.failure(f"The server answered with an error: {error}") from None


def takes_pictures(model: Path) -> bool:
    """Say whether a checkpoint's configuration has a vision tower.

    Raises ServeError if it cannot be read.
    """
    path = model / "config.json"
    text = read_text(path, ServeError, "Mend it, or download it again.")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ServeError(f"{path} is not JSON: {error}.", hint="Mend it, or download it again.") from None
    if not isinstance(config, dict):
        raise ServeError(f"{path} must hold a JSON object.", hint="Mend it, or download it again.")
    return "vision_config" in config


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


def _look(client: openai.OpenAI, model: str, picture: Path) -> None:
    data = base64.b64encode(picture.read_bytes()).decode()
    kind, _ = mimetypes.guess_type(picture.name)
    for name, url in {"base64": f"data:{kind};base64,{data}", "path": str(picture.resolve())}.items():
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": _QUESTION}]
        started = time.perf_counter()
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": content}], max_tokens=_TOKENS, temperature=0
        )
        seconds = time.perf_counter() - started
        text, tokens = answer.choices[0].message.content, answer.usage.completion_tokens
        _show(f"picture, by {name}", f"{picture.name}: {_QUESTION}", text, tokens, seconds, None)


def _complete(client: openai.OpenAI, model: str) -> None:
    started = time.perf_counter()
    answer = client.completions.create(model=model, prompt=_PROMPT, max_tokens=_TOKENS, temperature=0)
    seconds = time.perf_counter() - started
    _show("completion", _PROMPT, answer.choices[0].text, answer.usage.completion_tokens, seconds, None)


def _chat(client: openai.OpenAI, model: str) -> None:
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
    console.table(kind, [("prompt", repr(prompt)), ("answer", repr(answer)), ("timings", timings)])
