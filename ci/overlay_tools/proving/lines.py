"""Files of one's own with a prompt on each line: JSON objects, that may name pictures beside their prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from overlay_tools.errors import OverlayError
from overlay_tools.user_files import parse_json

PICTURE = "<image>"  # stands for a picture in a prompt, as in lm-eval's
ENDINGS = (".json", ".jsonl")  # of such a file


def read_lines(
    path: Path, text: str, failed: type[OverlayError], hint: str, problem: Callable[[dict[str, Any]], str]
) -> list[dict[str, Any]]:
    """Read the text of a file of JSON objects, one a line, each with a `prompt`, and `images` if it names pictures.

    Parameters: `failed`, the kind of error that is raised; `hint`, what a line is; `problem`, what is wrong with a line
    beside its prompt and its pictures, nothing if all is well.
    Returns the objects, in which pictures have their whole paths: they start at the folder of the file.
    Raises `failed`, which names the line, if it is no such file, or has no line.
    """
    documents: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            document = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise failed(f"{path}:{number}: this cannot be read as JSON: {error}.", hint=hint) from None
        if wrong := _problem(document) or problem(document):
            raise failed(f"{path}:{number}: {wrong}.", hint=hint)
        if "images" in document:
            document["images"] = [str((path.parent / image).resolve()) for image in document["images"]]
            if missing := [image for image in document["images"] if not Path(image).is_file()]:
                raise failed(f"{path}:{number}: there is no file {missing[0]}.", hint=hint)
        documents.append(document)
    if not documents:
        raise failed(f"{path} has no line.", hint=hint)
    return documents


def is_text(value: object) -> bool:
    """Tell whether a value is a text that is not empty."""
    return isinstance(value, str) and value != ""


def _problem(document: object) -> str:
    if not isinstance(document, dict):
        return "a JSON object is expected"
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return f"`{ascii(error.object[error.start])[1:-1]}` is half of a character"
    if "prompt" not in document:
        return "there is no `prompt`"
    if not is_text(document["prompt"]):
        return "`prompt` must be a text that is not empty"
    images = document.get("images", [])
    if not (isinstance(images, list) and all(is_text(image) for image in images)):
        return "`images` must be paths"
    if "images" in document and document["prompt"].count(PICTURE) != len(images):
        return f"`prompt` must have one {PICTURE} for each of the `images`"
    return ""
