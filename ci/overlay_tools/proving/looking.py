"""Put prompts with pictures to reference models, as chats of one message. It runs in an engine's environment."""

from __future__ import annotations

import functools
import io
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

PLACE = "<image>"  # stands for a picture in a prompt


class ReferenceProblem(Exception):  # noqa: N818  # it is not an error of this script
    """There is no reference model, or it is not this checkpoint's, or it cannot be asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A prompt with pictures, as a reference model takes it.

    `sent`: its tokens as an engine is asked, with one for each picture; `tokens`: as the model reads them, in which a
    picture has as many as it becomes; `logits`: what gives the logits of these, [1, length], and of more behind them.
    """

    sent: list[int]
    tokens: list[int]
    logits: Callable[[torch.Tensor], torch.Tensor]


def read_tokenizer(folder: Path, trusted: bool) -> Any:  # noqa: ANN401  # transformers has no types
    """Read a checkpoint's tokenizer, without its configuration where Transformers has no class for that.

    Some versions fail on a key that only a class explains, as on YaRN's of rotary positions.
    Parameters: `trusted`, whether code of the checkpoint's own may run.
    """
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    config = None if kind in transformers.CONFIG_MAPPING else transformers.PretrainedConfig()
    return _read(transformers.AutoTokenizer, folder, trusted, config=config)


def _read(kind: Any, folder: Path, trusted: bool, **options: Any) -> Any:  # noqa: ANN401
    try:
        # Without a word on it, Transformers would ask here, and wait for an answer.
        return kind.from_pretrained(folder, trust_remote_code=trusted, **options)
    except ValueError as error:
        if "trust_remote_code=True" not in str(error):
            raise
        raise ReferenceProblem(f"{folder} has code of its own, which runs only with `-- --trust-remote-code`") from None


def message(prompt: str, pictures: Sequence[Any], part: Callable[[Any], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a prompt as a chat of one message, in which `part` makes what stands for a picture."""
    texts = prompt.split(PLACE)
    if len(texts) != len(pictures) + 1:
        raise ReferenceProblem(f"{prompt[:40]!r} has {len(texts) - 1} places for {len(pictures)} pictures")
    parts: list[Mapping[str, Any]] = []
    for text, picture in itertools.zip_longest(texts, pictures):
        parts += [{"type": "text", "text": text}] * bool(text)
        parts += [part(picture)] if picture is not None else []
    return [{"role": "user", "content": parts}]


def show_to_case(case: Any, model: Any, tokenizer: Any, prompt: str, files: Sequence[bytes]) -> Shown:  # noqa: ANN401
    """Put a prompt to the reference model of a case of tests/models/, loaded from its checkpoint."""
    chat = message(prompt, files, lambda _: {"type": "image"})
    sent = _encoded(tokenizer, chat, tokenizer.chat_template)
    tokens, logits = case.ask(model, sent, files)
    return Shown(sent=sent, tokens=list(tokens), logits=logits)


def show_to_transformers(
    model: Any,  # noqa: ANN401
    folder: Path,
    trusted: bool,
    tokenizer: Any,  # noqa: ANN401
    prompt: str,
    pictures: Sequence[Any],
) -> Shown:
    """Put a prompt to a model of Transformers, None if its logits are not asked for; `pictures` are PIL's."""
    chat, inputs = inputs_of(folder, trusted, tokenizer, prompt, pictures)
    tokens = inputs.pop("input_ids")
    inputs.pop("attention_mask", None)

    def logits(all_tokens: torch.Tensor) -> torch.Tensor:
        more = all_tokens.shape[1] - tokens.shape[1]
        given = {name: value.to(model.device) for name, value in inputs.items()}
        for name, value in given.items():
            if value.shape == tokens.shape:  # the kind of each token: what comes behind the prompt is text, 0
                given[name] = torch.nn.functional.pad(value, (0, more))
            elif value.is_floating_point():
                given[name] = value.to(model.dtype)
        found: torch.Tensor = model(all_tokens, use_cache=False, **given).logits
        return found

    sent = _encoded(tokenizer, chat, template_of(folder, trusted, tokenizer))
    return Shown(sent=sent, tokens=tokens[0].tolist(), logits=logits)


def inputs_of(
    folder: Path,
    trusted: bool,
    tokenizer: Any,  # noqa: ANN401
    prompt: str,
    pictures: Sequence[Any],
) -> tuple[list[dict[str, Any]], Any]:
    """Make a chat of a prompt, and of that what a model of Transformers takes; `pictures` are PIL's."""
    chat = message(prompt, pictures, lambda picture: {"type": "image", "image": picture})
    whole = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    template = template_of(folder, trusted, tokenizer)
    return chat, processor_of(folder, trusted).apply_chat_template(chat, template, **whole)


def template_of(folder: Path, trusted: bool, tokenizer: Any) -> str:  # noqa: ANN401
    """Return the chat template that a server takes: the processor's, or the tokenizer's where that has none."""
    found = getattr(processor_of(folder, trusted), "chat_template", None) or tokenizer.chat_template
    if not found:
        raise ReferenceProblem(f"{folder} has no chat template, and pictures are shown in chats")
    return str(found)


@functools.cache
def processor_of(folder: Path, trusted: bool) -> Any:  # noqa: ANN401
    """Read a checkpoint's processor; `trusted` as of `read_tokenizer`."""
    try:
        found = _read(transformers.AutoProcessor, folder, trusted)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ReferenceProblem(f"{folder} has no processor to read: {first_line(error)}") from None
    if not hasattr(found, "image_processor"):
        raise ReferenceProblem(f"{folder} takes no pictures")
    return found


def places_of(folder: Path, tokens: Sequence[int]) -> list[int]:
    """Return at which places of a prompt are a picture's tokens, which an engine has under numbers of its own."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = ("image_token_id", "image_token_index")
    known = {config[name] for name in names if isinstance(config.get(name), int)}
    if not known & {*tokens}:
        raise ReferenceProblem(f"{folder / 'config.json'} does not say which token stands for a picture")
    return [place for place, token in enumerate(tokens) if token in known]


def open_picture(path: Path) -> Any:  # noqa: ANN401  # PIL's
    """Read a picture."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, ValueError, SyntaxError) as error:
        raise ReferenceProblem(f"{path} cannot be read as a picture: {first_line(error)}") from None


def png(picture: Any) -> bytes:  # noqa: ANN401  # PIL's
    """Write a picture as a file, without loss."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def draw(folder: Path) -> list[tuple[str, list[str]]]:
    """Draw pictures of several sizes into a folder; return prompts with their paths."""
    paths = []
    for number, (width, height) in enumerate([(64, 64), (150, 90), (40, 220)]):
        fractal = Image.effect_mandelbrot((width, height), (-2.0 + number / 4, -1.2, 0.8, 1.2), 40)
        ramps = [Image.linear_gradient("L"), Image.radial_gradient("L")]
        picture = Image.merge("RGB", [fractal, *(ramp.resize((width, height)) for ramp in ramps)])
        paths.append(str(folder / f"picture-{number}.png"))
        picture.save(paths[-1])
    first, second, third = paths
    return [
        (f"{PLACE}What is this?", [first]),
        (f"Describe this picture: {PLACE}", [second]),
        (f"{PLACE}{PLACE} What differs?", [third, first]),
    ]


def first_line(error: BaseException) -> str:
    """Return an error in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _encoded(tokenizer: Any, chat: Sequence[Mapping[str, Any]], template: str | None) -> list[int]:  # noqa: ANN401
    if not template:
        raise ReferenceProblem("the tokenizer has no chat template, and pictures are shown in chats")
    text = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=True)
    return [*tokenizer.encode(text, add_special_tokens=False)]
