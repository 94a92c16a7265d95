"""lm-eval's environment, and what is said to and by the script, of which a stand-in takes the place."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from overlay_tools.engines.server import Server
from overlay_tools.errors import AccuracyError, ServeError
from overlay_tools.proving.accuracy import harness
from overlay_tools.proving.accuracy.harness import LM_EVAL, open_harness, open_lm_eval
from overlay_tools.proving.accuracy.scores import Score
from overlay_tools.proving.accuracy.tasks import Task

STAND_IN = """
import json, pathlib, sys
job = json.loads(pathlib.Path(sys.argv[1]).read_text())
[task] = job["tasks"]
print(json.dumps({"problems": ["it is unknown", "and more"]} if task["known"] == "unknown" else {}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked.get("at_once") == 0:
        print(json.dumps({"problem": "it does not answer"}), flush=True)
        continue
    digest = json.dumps([job["paths"], job["limit"], job["dtype"], task["documents"]])
    right = [asked.get("at_once", 0), asked.get("server", 0)]
    print(json.dumps({"scores": {task["name"]: {"metric": "acc", "digest": digest, "right": right}}}), flush=True)
"""


def test_lm_eval_brings_what_the_engine_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "engine/lib/python3.11/site-packages"
    for name in ("torch-2.0", "flash_attn-4.1+x", "sglang-0.5"):
        (installed / f"{name}.dist-info").mkdir(parents=True)
    made: list[tuple[Path, str | None, Sequence[Path], Sequence[str], Sequence[str]]] = []

    @contextmanager
    def make(
        folder: Path, python: str | None, wheels: Sequence[Path], extras: Sequence[str], left_out: Sequence[str]
    ) -> Iterator[Path]:
        made.append((folder, python, wheels, extras, left_out))
        (folder / "lib/python3.11/site-packages").mkdir(parents=True)
        yield folder / "bin/python"

    monkeypatch.setattr(harness, "open_environment", make)
    with open_lm_eval(tmp_path / "engine/bin/python", "3.11") as packages:
        assert packages == tmp_path / "engine/lm-eval/lib/python3.11/site-packages"
    there = ["flash_attn", "sglang", "torch"]
    assert made == [(tmp_path / "engine/lm-eval", "3.11", [], [f"lm-eval[api]=={LM_EVAL}"], there)]


@contextmanager
def opened(folder: Path, monkeypatch: pytest.MonkeyPatch, task: Task) -> Iterator[harness.Harness]:
    script = folder / "evaluate.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(harness, "_SCRIPT", script)
    job = {"paths": ["tests"], "dtype": "float32"}
    with open_harness(Path(sys.executable), Path("packages"), job, {}, folder, [task], 3) as opened:
        yield opened


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(Path("python"), tmp_path, [], env={}, log=tmp_path / "log", port=20_000)


def test_each_model_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    task = Task(name="own", documents=[{"prompt": "a", "answer": "b"}])
    with opened(tmp_path, monkeypatch, task) as asking:
        digest = '[["packages", "tests"], 3, "float32", [{"prompt": "a", "answer": "b"}]]'
        engine = asking.ask_server(server, 8)
        assert engine == {"own": Score(metric="acc", digest=digest, right=[8, "http://127.0.0.1:20000"])}  # type: ignore[list-item]
        assert asking.ask_reference(engine) == {"own": Score(metric="acc", digest=digest, right=[0, 0])}


@pytest.mark.parametrize(
    "other", [Score(metric="f1", digest="[]", right=[1, 0]), Score(metric="acc", digest="[]", right=[1, 0])]
)
def test_both_are_asked_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Score) -> None:
    with (
        pytest.raises(AccuracyError, match=r"own: the engine and the reference model were asked other prompts\."),
        opened(tmp_path, monkeypatch, Task(name="own", documents=[])) as asking,
    ):
        asking.ask_reference({"own": other})


def test_a_task_that_cannot_be_had_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(AccuracyError, match=r"it is unknown\.\nand more\."),
        opened(tmp_path, monkeypatch, Task(name="own", known="unknown")),
    ):
        pass


@pytest.mark.parametrize("ended", [False, True])
def test_a_server_that_cannot_be_asked_is_said_or_that_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, ended: bool
) -> None:
    def check(self: Server) -> None:
        if ended:
            raise ServeError("The server ended.")

    monkeypatch.setattr(Server, "check", check)
    said = "The server ended" if ended else "The engine cannot be asked: it does not answer"
    with (
        pytest.raises(ServeError if ended else AccuracyError, match=said),
        opened(tmp_path, monkeypatch, Task(name="own", known="own")) as asking,
    ):
        asking.ask_server(server, 0)
