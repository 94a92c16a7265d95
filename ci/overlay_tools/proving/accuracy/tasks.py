"""Tasks that a model is asked: those that lm-eval knows by name, and files of one's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from overlay_tools.errors import AccuracyError
from overlay_tools.user_files import parse_json, read_text

_ALIASES = {"mmmu": "mmmu_val"}  # by what people call it, and lm-eval does not
_PICTURE = "<image>"  # stands for a picture in a prompt, as in lm-eval's
_KEYS = ("choices", "images")
_ENDINGS = (".json", ".jsonl")  # that no task of lm-eval's has, though some have a dot
HINT = (
    'A line is {"prompt": TEXT, "answer": TEXT} or {"prompt": TEXT, "choices": [TEXT, ...], "answer": NUMBER}; the'
    f' first may have {{"images": [PATH, ...]}} for each {_PICTURE} of its prompt.'
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A task: `name`, as a person has named it; `known`, lm-eval's name, or else `documents`, those of a file."""

    name: str
    known: str | None = None
    documents: Sequence[dict[str, Any]] = ()

    def to_job(self) -> dict[str, Any]:
        """Return what the script is told of it."""
        return asdict(self)


def open_tasks(names: Sequence[str]) -> list[Task]:
    """Return the tasks that are named, once each, and read those that are files.

    Raises AccuracyError if a file cannot be read or is no such file.
    """
    return [_open(name) for name in dict.fromkeys(names)]


def _open(name: str) -> Task:
    path = Path(name)
    if path.is_file() or path.suffix in _ENDINGS or len(path.parts) > 1:
        return Task(name=name, documents=_read(path))
    return Task(name=name, known=_ALIASES.get(name, name))


def _read(path: Path) -> list[dict[str, Any]]:
    text = read_text(path, AccuracyError, hint="Name a file of questions, or a task that lm-eval knows.")
    documents: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            document = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise AccuracyError(f"{path}:{number}: this cannot be read as JSON: {error}.", hint=HINT) from None
        if problem := _problem(document):
            raise AccuracyError(f"{path}:{number}: {problem}.", hint=HINT)
        for key in _KEYS:
            if documents and (key in document) != (key in documents[0]):
                raise AccuracyError(
                    f"{path}:{number}: some lines have `{key}`, and others have none.",
                    hint="Put them into files of their own, and name both: a task has one kind of lines.",
                )
        if "images" in document:
            document["images"] = [str((path.parent / image).resolve()) for image in document["images"]]
            if missing := [image for image in document["images"] if not Path(image).is_file()]:
                raise AccuracyError(f"{path}:{number}: there is no file {missing[0]}.", hint=HINT)
        documents.append(document)
    if not documents:
        raise AccuracyError(f"{path} has no line.", hint=HINT)
    return documents


def _problem(document: object) -> str:
    """Say what is wrong with what a line holds; nothing if it is a document."""
    if not isinstance(document, dict):
        return "a JSON object is expected"
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return f"`{ascii(error.object[error.start])[1:-1]}` is half of a character"
    for key in ("prompt", "answer"):
        if key not in document:
            return f"there is no `{key}`"
    if unknown := sorted(document.keys() - {"prompt", "answer", *_KEYS}):
        return f"`{unknown[0]}` is not known"
    if not _is_text(document["prompt"]):
        return "`prompt` must be a text that is not empty"
    images = document.get("images", [])
    if not (isinstance(images, list) and all(_is_text(image) for image in images)):
        return "`images` must be paths"
    if "images" in document and document["prompt"].count(_PICTURE) != len(images):
        return f"`prompt` must have one {_PICTURE} for each of the `images`"
    if "images" in document and "choices" in document:
        return "`images` go with an `answer` of text, not with `choices`"
    answer = document["answer"]
    if "choices" not in document:
        good = _is_text(answer) and answer.strip() and "\n" not in answer.strip()
        return "" if good else "`answer` must be a text of one line, as there are no `choices`"
    choices = document["choices"]
    if not (isinstance(choices, list) and len(choices) > 1 and all(_is_text(choice) for choice in choices)):
        return "`choices` must be two texts or more, none of them empty"
    if len({*choices}) < len(choices):
        return "two of the `choices` are the same"
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        return f"`answer` must be the number of a choice, from 0 to {len(choices) - 1}"
    return ""


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""
