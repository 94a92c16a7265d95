"""Tasks that a model is asked: those that lm-eval knows by name, and files of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from overlay_tools.errors import AccuracyError
from overlay_tools.proving.lines import ENDINGS, PICTURE, is_text, read_lines
from overlay_tools.user_files import read_text

_ALIASES = {"mmmu": "mmmu_val"}  # by what people call it, and lm-eval does not
_KEYS = ("choices", "images")
HINT = (
    'A line is {"prompt": TEXT, "answer": TEXT} or {"prompt": TEXT, "choices": [TEXT, ...], "answer": NUMBER}; the'
    f' first may have {{"images": [PATH, ...]}} for each {PICTURE} of its prompt.'
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
    if path.is_file() or path.suffix in ENDINGS or len(path.parts) > 1:
        return Task(name=name, documents=_read(path))
    return Task(name=name, known=_ALIASES.get(name, name))


def _read(path: Path) -> list[dict[str, Any]]:
    text = read_text(path, AccuracyError, hint="Name a file of questions, or a task that lm-eval knows.")
    first: dict[str, Any] = {}

    def problem(document: dict[str, Any]) -> str:
        first.update(first or document)
        for key in _KEYS:
            if (key in document) != (key in first):
                return f"some lines have `{key}`, and others have none: a task has one kind of lines"
        return _problem(document)

    return read_lines(path, text, AccuracyError, HINT, problem)


def _problem(document: dict[str, Any]) -> str:
    """Say what is wrong with what a line holds beside its prompt; nothing if it is a document."""
    if "answer" not in document:
        return "there is no `answer`"
    if unknown := sorted(document.keys() - {"prompt", "answer", *_KEYS}):
        return f"`{unknown[0]}` is not known"
    if "images" in document and "choices" in document:
        return "`images` go with an `answer` of text, not with `choices`"
    answer = document["answer"]
    if "choices" not in document:
        good = is_text(answer) and answer.strip() and "\n" not in answer.strip()
        return "" if good else "`answer` must be a text of one line, as there are no `choices`"
    choices = document["choices"]
    if not (isinstance(choices, list) and len(choices) > 1 and all(is_text(choice) for choice in choices)):
        return "`choices` must be two texts or more, none of them empty"
    if len({*choices}) < len(choices):
        return "two of the `choices` are the same"
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        return f"`answer` must be the number of a choice, from 0 to {len(choices) - 1}"
    return ""
