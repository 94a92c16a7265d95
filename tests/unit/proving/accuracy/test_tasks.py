from __future__ import annotations

import json
from pathlib import Path

import pytest
from overlay_tools.errors import AccuracyError
from overlay_tools.proving.accuracy.tasks import Task, open_tasks

GENERATED = {"prompt": "One and one is", "answer": "two"}
SEEN = {"prompt": "<image> and <image> are", "images": ["a.png", "more/b.png"], "answer": "two"}
CHOSEN = {"prompt": "One and one is", "choices": [" two", " three"], "answer": 0}


def write(path: Path, *lines: object) -> str:
    """Write a file of lines, texts as they are and all else as JSON."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return str(path)


def test_a_name_is_one_of_lm_evals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gsm8k").mkdir()
    assert open_tasks(["gsm8k", "mmmu", "gsm8k", "longproc_countdown_0.5k"]) == [
        Task(name="gsm8k", known="gsm8k"),
        Task(name="mmmu", known="mmmu_val"),
        Task(name="longproc_countdown_0.5k", known="longproc_countdown_0.5k"),
    ]


@pytest.mark.parametrize("document", [GENERATED, CHOSEN])
def test_a_file_is_read_line_by_line(tmp_path: Path, document: dict[str, object]) -> None:
    name = write(tmp_path / "own.jsonl", document, "", document)
    assert open_tasks([name]) == [Task(name=name, documents=[document, document])]


def test_a_file_needs_no_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("gsm8k"), GENERATED)
    assert open_tasks(["gsm8k"]) == [Task(name="gsm8k", documents=[GENERATED])]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "this cannot be read as JSON: "),
        ("[" * 100_000, "this cannot be read as JSON: "),
        ('{"prompt": "One", "answer": "1", "prompt": "Two"}', "this cannot be read as JSON: `prompt` is there twice."),
        ("7", "a JSON object is expected"),
        ({"answer": "two"}, "there is no `prompt`"),
        ({"prompt": "One"}, "there is no `answer`"),
        ({**GENERATED, "anwser": "three"}, "`anwser` is not known"),
        ({**GENERATED, "prompt": ""}, "`prompt` must be a text that is not empty"),
        ({**GENERATED, "prompt": "a\ud800"}, "`\\ud800` is half of a character"),
        ({**CHOSEN, "choices": [" two", "\udc00"]}, "`\\udc00` is half of a character"),
        ({**GENERATED, "prompt": 1}, "`prompt` must be a text that is not empty"),
        ({**GENERATED, "answer": 2}, "`answer` must be a text of one line, as there are no `choices`"),
        ({**GENERATED, "answer": " "}, "`answer` must be a text of one line"),
        ({**GENERATED, "answer": "two\nor more"}, "`answer` must be a text of one line"),
        ({**CHOSEN, "choices": [" two"]}, "`choices` must be two texts or more, none of them empty"),
        ({**CHOSEN, "choices": " two"}, "`choices` must be two texts or more, none of them empty"),
        ({**CHOSEN, "choices": [" two", ""]}, "`choices` must be two texts or more, none of them empty"),
        ({**CHOSEN, "choices": [" two", " two"]}, "two of the `choices` are the same"),
        ({**SEEN, "images": "a.png"}, "`images` must be paths"),
        ({**SEEN, "images": ["a.png", 1]}, "`images` must be paths"),
        ({**SEEN, "images": ["a.png"]}, "`prompt` must have one <image> for each of the `images`"),
        ({**SEEN, "choices": [" 1", " 2"], "answer": 0}, "`images` go with an `answer` of text, not with `choices`"),
        (SEEN, "there is no file /"),
        ({**CHOSEN, "answer": 2}, "`answer` must be the number of a choice, from 0 to 1"),
        ({**CHOSEN, "answer": -1}, "`answer` must be the number of a choice, from 0 to 1"),
        ({**CHOSEN, "answer": True}, "`answer` must be the number of a choice, from 0 to 1"),
        ({**CHOSEN, "answer": " two"}, "`answer` must be the number of a choice, from 0 to 1"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, line: object, said: str) -> None:
    name = write(tmp_path / "own.jsonl", "", line)
    with pytest.raises(AccuracyError) as caught:
        open_tasks(["gsm8k", name])
    assert str(caught.value).startswith(f"{name}:2: {said}")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("first", "second", "key"),
    [(GENERATED, CHOSEN, "choices"), (CHOSEN, GENERATED, "choices"), (GENERATED, SEEN, "images")],
)
def test_a_file_has_one_kind_of_lines(tmp_path: Path, first: object, second: object, key: str) -> None:
    with pytest.raises(AccuracyError, match=rf"own\.jsonl:2: some lines have `{key}`, and others have none: a task"):
        open_tasks([write(tmp_path / "own.jsonl", first, second)])


def test_pictures_are_named_from_the_folder_of_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("own/a.png", "own/more/b.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    [task] = open_tasks([write(Path("own/own.jsonl"), SEEN)])
    assert task.documents[0]["images"] == [str(tmp_path / "own/a.png"), str(tmp_path / "own/more/b.png")]


def test_a_file_without_lines_is_none(tmp_path: Path) -> None:
    with pytest.raises(AccuracyError, match=r"own\.jsonl has no line\."):
        open_tasks([write(tmp_path / "own.jsonl", " ")])


@pytest.mark.parametrize("name", ["missing.jsonl", "folder/missing"])
def test_what_looks_like_a_file_is_none_of_lm_evals(name: str) -> None:
    with pytest.raises(AccuracyError, match=f"{name}: No such file or directory") as caught:
        open_tasks([name])
    assert caught.value.hint == "Name a file of questions, or a task that lm-eval knows."
