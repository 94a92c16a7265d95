"""`accuracy`, as it is called: what it says of made-up scores, and what it refuses before anything is built."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from overlay_tools import cli
from overlay_tools.checkpoints.safetensors_header import Tensor, dump_shard
from overlay_tools.commands import accuracy
from overlay_tools.engines.server import Server
from overlay_tools.errors import AccuracyError
from overlay_tools.proving import memory
from overlay_tools.proving.accuracy.harness import LM_EVAL
from overlay_tools.proving.accuracy.scores import Score
from overlay_tools.proving.accuracy.tasks import Task

from unit.conftest import Miniature

LINE = {"prompt": "One and one is", "answer": "two"}
EARLIER = {
    "asked": {"lm-eval": LM_EVAL, "--limit": None},
    "about": {"checkpoint": "model", "sglang": "0.5.22", "device": "CPU", "dtype": "float32", "arguments": []},
    "tasks": {"own.jsonl": {"engine": {"metric": "acc", "digest": "d", "right": [1]}}},
}


class MadeUp:
    """What asks in lm-eval's place: 20 documents a task, of which each side answers the last ones wrongly."""

    def __init__(self) -> None:
        self.wrong = {"engine": 0, "reference": 0}
        self.digest = "d"
        self.jobs: list[tuple[Mapping[str, Any], Sequence[Task], int | None]] = []
        self.servers: list[tuple[Server, int]] = []

    def _scores(self, who: str) -> dict[str, Score]:
        right = [1] * (20 - self.wrong[who]) + [0] * self.wrong[who]
        [(_, tasks, _)] = self.jobs[-1:]
        return {task.name: Score(metric="acc", digest=self.digest, right=right) for task in tasks}

    def ask_server(self, server: Server, at_once: int) -> dict[str, Score]:
        self.servers.append((server, at_once))
        return self._scores("engine")

    def ask_reference(self, engine: Mapping[str, Score]) -> dict[str, Score]:
        assert engine == self._scores("engine")
        return self._scores("reference")


@pytest.fixture
def checkpoint(mini_here: Miniature) -> Path:
    """Return a checkpoint that nothing is wrong with, in the working folder, beside a file of a task."""
    mini_here.write("model/config.json", json.dumps({"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}))
    Path("model/model.safetensors").write_bytes(dump_shard({"lm_head.weight": Tensor("BF16", [2, 3], bytes(12))}))
    Path("own.jsonl").write_text(json.dumps(LINE))
    return Path("model")


@pytest.fixture
def made_up(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    """Build and ask nothing in truth."""
    asking = MadeUp()

    @contextmanager
    def open_harness(
        python: Path,
        packages: Path,
        job: Mapping[str, Any],
        env: object,
        folder: Path,
        tasks: Sequence[Task],
        limit: int | None,
    ) -> Iterator[MadeUp]:
        assert (python, packages) == (Path("python"), Path("packages"))
        asking.jobs.append((job, tasks, limit))
        yield asking

    monkeypatch.setattr(accuracy, "open_engine", lambda *arguments, **options: nullcontext(Path("python")))
    monkeypatch.setattr(accuracy, "open_lm_eval", lambda *arguments: nullcontext(Path("packages")))
    monkeypatch.setattr(accuracy, "open_harness", open_harness)
    monkeypatch.setattr(Server, "__enter__", lambda self: self)
    monkeypatch.setattr(Server, "__exit__", lambda *arguments: None)
    return asking


def test_both_are_asked_and_shown(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    made_up.wrong = {"engine": 6, "reference": 5}
    words = ["model", "--task", "own.jsonl", "--task", "gsm8k", "--limit", "20", "--json", "out/r.json"]
    words += ["--timeout", "900"]
    assert cli.main(["accuracy", *words, "--", "--trust-remote-code", "--tp-size", "2"]) == 0
    [(job, tasks, limit)] = made_up.jobs
    assert (job["dtype"], job["device"], job["trusted"], limit) == ("float32", "cpu", True, 20)
    assert [(task.name, task.known, list(task.documents)) for task in tasks] == [
        ("own.jsonl", None, [LINE]),
        ("gsm8k", "gsm8k", []),
    ]
    [(server, at_once)] = made_up.servers
    assert (server.flags[-2:], server.timeout, at_once) == (["--tp-size", "2"], 900.0, 8)
    said = " ".join(capsys.readouterr().out.split())
    assert "own.jsonl acc 20 70.0 ± 10.5 75.0 ± 9.9 -5.0 -19.9 to +10.8 0, 1" in said
    assert "The engine does not do worse than Transformers in float32." in said
    written = json.loads(Path("out/r.json").read_text())
    assert written["asked"]["--limit"] == 20
    assert written["about"]["arguments"] == ["--trust-remote-code", "--tp-size", "2"]
    assert sum(written["tasks"]["gsm8k"]["engine"]["right"]) == 14


def test_to_be_worse_is_a_failure(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    made_up.wrong = {"engine": 10, "reference": 0}
    assert cli.main(["accuracy", "model", "--task", "own.jsonl", "--json", "r.json"]) == 1
    assert "The engine does worse than Transformers in float32: own.jsonl." in capsys.readouterr().out
    assert json.loads(Path("r.json").read_text())["worse"] == ["own.jsonl"]


def test_to_be_better_is_none(made_up: MadeUp) -> None:
    made_up.wrong = {"engine": 0, "reference": 10}
    assert cli.main(["accuracy", "model", "--task", "own.jsonl"]) == 0


@pytest.mark.parametrize(("bound", "status"), [("20", 1), ("30", 0)])
def test_the_bound_is_in_points(made_up: MadeUp, bound: str, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 20 documents 10 are right in Transformers alone: the interval ends at -22.5 points."""
    made_up.wrong = {"engine": 10, "reference": 0}
    assert cli.main(["accuracy", "model", "--task", "own.jsonl", "--bound", bound]) == status
    assert f"by more than {bound}.0 points" in capsys.readouterr().out


def test_an_earlier_run_takes_the_place_of_transformers(
    made_up: MadeUp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up.wrong = {"engine": 1, "reference": 20}
    assert cli.main(["accuracy", "model", "--task", "own.jsonl", "--task", "gsm8k", "--json", "before.json"]) == 0
    monkeypatch.setattr(made_up, "ask_reference", None)
    words = ["accuracy", "model", "--task", "own.jsonl", "--against", "before.json"]
    assert cli.main(words) == 0
    made_up.wrong["engine"] = 12
    assert cli.main(words) == 1
    assert "The engine does worse than the engine in before.json: own.jsonl." in capsys.readouterr().out
    made_up.digest = "other"
    assert cli.main(words) == 1
    assert "before.json: own.jsonl has other prompts, choices or answers" in capsys.readouterr().err


def test_an_earlier_run_of_other_settings_is_refused_before_anything_is_built(
    made_up: MadeUp, mini_here: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["accuracy", "model", "--task", "own.jsonl", "--json", "before.json"]) == 0
    made_up.jobs.clear()
    for words, said in {
        ("--task", "own.jsonl", "--limit", "5"): "before.json: --limit was None there, and is 5 here.",
        ("--task", "gsm8k"): "before.json has no task gsm8k.",
        ("--task", "own.jsonl", "--reference", "a:B"): "--reference asks Transformers, and --against names a file",
    }.items():
        assert cli.main(["accuracy", "model", *words, "--against", "before.json"]) in (1, 2)
        assert said in capsys.readouterr().err
    assert not made_up.jobs


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["overlay", "--task", "own.jsonl"], "overlay is not a checkpoint: it has no config.json."),
        (["model"], "--task"),
        (["model", "--task", "nothing.jsonl"], "nothing.jsonl: No such file or directory."),
        (["model", "--task", "bad.jsonl"], "bad.jsonl:1: there is no `answer`."),
        (["model", "--task", "own.jsonl", "--against", "nothing.json"], "nothing.json: No such file or directory."),
        (["model", "--task", "own.jsonl", "--against", "own.jsonl"], "own.jsonl is not what an earlier run has"),
        (["model", "--task", "own.jsonl", "--json", "model"], "model cannot be written: it is a folder."),
        (["model", "--task", "own.jsonl", "--json", "model/../own.jsonl"], "own.jsonl is read, and --json would"),
        (["model", "--task", "own.jsonl", "--limit", "0"], "0 is not a number from 1 on"),
        (["model", "--task", "own.jsonl", "--bound", "-1"], "--bound"),
        (["model", "--task", "own.jsonl", "--bound", "nan"], "nan is not a number of percentage points"),
        (["model", "--task", "own.jsonl", "--bound", "much"], "much is not a number of percentage points"),
        (["model", "--task", "own.jsonl", "--reference", "my_model"], "--reference my_model is not MODULE:CLASS."),
        (["model", "9.9", "--task", "own.jsonl"], "9.9"),
        (["model", "--task", "own.jsonl", "--", "--port=1"], "--port cannot be passed on to the server."),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_built(
    checkpoint: Path, mini_here: Miniature, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.jsonl").write_text('{"prompt": "One"}')
    try:
        status = cli.main(["accuracy", *words])
    except SystemExit as error:
        status = int(error.code or 0)
    assert status in (1, 2)
    assert said in capsys.readouterr().err
    assert not (mini_here.root / "dist").exists()


def test_a_checkpoint_that_memory_does_not_take_is_refused_before_anything_is_built(
    checkpoint: Path, mini_here: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 1 << 30)
    Path("before.json").write_text(json.dumps(EARLIER))
    for words in ([], ["--against", "before.json"]):  # without Transformers, the engine is there all the same
        assert cli.main(["accuracy", "model", "--task", "own.jsonl", *words]) == 1
        assert "This needs about 3.0 GiB of memory (6 values in float32)" in capsys.readouterr().err
    assert not (mini_here.root / "dist").exists()


def fail(*asked: object) -> dict[str, Score]:
    raise AccuracyError("The reference model cannot be asked: it is gone.")


def test_what_the_engine_did_is_not_lost_where_transformers_fails(
    made_up: MadeUp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asking the engine again could take hours: Transformers alone is asked then, with what the file says."""
    made_up.wrong = {"engine": 10, "reference": 0}
    words = ["accuracy", "model", "1.1", "--task", "own.jsonl", "--json", "r.json"]
    with monkeypatch.context() as patched:
        patched.setattr(made_up, "ask_reference", fail)
        assert cli.main([*words, "--", "--dtype", "bfloat16"]) == 1
    said = capsys.readouterr()
    assert "it is gone" in said.err
    assert "What the engine did is in r.json: with --engine r.json, Transformers alone is asked." in said.out
    made_up.servers.clear()
    assert cli.main(["accuracy", "model", "--task", "own.jsonl", "--engine", "r.json", "--json", "r.json"]) == 1
    assert made_up.servers == []
    assert made_up.jobs[-1][0]["dtype"] == "bfloat16"
    said = capsys.readouterr()
    assert "The engine does worse than Transformers in bfloat16: own.jsonl." in said.out
    assert "Transformers runs on" in said.out
    assert "The engine runs on" not in said.out
    written = json.loads(Path("r.json").read_text())
    assert written["worse"] == ["own.jsonl"]
    assert (written["about"]["sglang"], written["about"]["arguments"]) == ("1.1", ["--dtype", "bfloat16"])


def test_what_the_engine_did_is_kept_where_no_file_is_named(
    made_up: MadeUp, mini_here: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(made_up, "ask_reference", fail)
        assert cli.main(["accuracy", "model", "--task", "own.jsonl"]) == 1
    [kept] = (mini_here.root / ".nox/scores").iterdir()
    assert f"What the engine did is in {kept}:" in capsys.readouterr().out
    assert cli.main(["accuracy", "model", "--task", "own.jsonl", "--engine", str(kept)]) == 0
    assert cli.main(["accuracy", "model", "--task", "own.jsonl"]) == 0
    assert [*(mini_here.root / ".nox/scores").iterdir()] == [kept]  # it is a person's now; what is shown is not kept


@pytest.mark.parametrize("named", [[], ["--json", "r.json"]])
def test_what_the_engine_did_is_not_lost_where_an_earlier_run_was_asked_otherwise(
    made_up: MadeUp, mini_here: Miniature, named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["accuracy", "model", "--task", "own.jsonl"]
    assert cli.main([*words, "--json", "before.json"]) == 0
    made_up.digest = "other"
    assert cli.main([*words, "--against", "before.json", *named]) == 1
    said = capsys.readouterr()
    assert "before.json: own.jsonl has other prompts, choices or answers" in said.err
    [kept] = [Path("r.json")] if named else (mini_here.root / ".nox/scores").iterdir()
    assert f"What the engine did is in {kept}:" in said.out
    made_up.servers.clear()
    assert cli.main([*words, "--engine", str(kept)]) == 0
    assert made_up.servers == []


def test_no_verdict_of_an_earlier_run_stays_after_an_error(made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["accuracy", "model", "--task", "own.jsonl", "--json", "r.json"]
    assert cli.main(words) == 0
    before = Path("r.json").read_bytes()
    assert cli.main([*words, "9.9"]) == 1  # nothing has been asked then
    assert Path("r.json").read_bytes() == before
    monkeypatch.setattr(made_up, "ask_server", fail)
    monkeypatch.setattr(made_up, "ask_reference", fail)
    assert cli.main([*words, "--engine", "./r.json"]) == 1
    assert Path("r.json").read_bytes() == before  # what the engine did is in it
    assert cli.main(words) == 1
    assert not Path("r.json").exists()


def test_what_another_engine_did_is_refused(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["accuracy", "model", "--task", "own.jsonl", "--json", "r.json", "--", "--tp-size", "2"]) == 0
    made_up.jobs.clear()
    for words, said in {
        ("--task", "gsm8k"): "r.json has no task gsm8k.",
        ("--task", "own.jsonl", "--limit", "5"): "r.json: --limit was None there, and is 5 here.",
        ("--task", "own.jsonl", "--", "--tp-size", "4"): "r.json: arguments was ['--tp-size', '2'] there, and is",
        ("--task", "own.jsonl", "--against", "r.json"): "--engine asks Transformers, and --against names a file",
    }.items():
        assert cli.main(["accuracy", "model", "--engine", "r.json", *words]) in (1, 2)
        assert said in capsys.readouterr().err
    Path("other").symlink_to("model")
    assert cli.main(["accuracy", "other", "--task", "own.jsonl", "--engine", "r.json"]) == 1
    assert "r.json: checkpoint was model there, and is other here." in capsys.readouterr().err
    assert not made_up.jobs
