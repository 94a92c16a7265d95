"""`bench`, as it is called: what it shows of made-up speeds, and what it refuses before anything is built."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from overlay_tools import cli
from overlay_tools.checkpoints.safetensors_header import Tensor, dump_shard
from overlay_tools.commands import bench
from overlay_tools.engines.server import Server
from overlay_tools.proving import memory
from overlay_tools.proving.bench.rounds import Load, Speed

from unit.conftest import Miniature


class Slow:
    """A reference model that takes twice as long as the engine for the first token, and gives half of the tokens."""

    said: Mapping[str, Any] = {"reference": "transformers.Tiny", "transformers": "5.0"}

    def measure(self, load: Load, seed: int, vocabulary: int) -> Speed:
        assert vocabulary == 99
        return Speed(first=0.2, between=0.03 if load.written > 1 else 0.0, second=10.0 * seed)


@pytest.fixture
def measured(mini_here: Miniature, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Load, int]]:
    """Measure nothing in truth; return what of the engine is asked for."""
    mini_here.write("model/config.json", json.dumps({"text_config": {"vocab_size": 99}, "dtype": "bfloat16"}))
    Path("model/model.safetensors").write_bytes(dump_shard({"lm_head.weight": Tensor("BF16", [2, 3], bytes(12))}))
    asked: list[tuple[Load, int]] = []

    def measure(server: Server, load: Load, seed: int, folder: Path) -> Speed:
        asked.append((load, seed))
        assert server.flags[-2:] == ["--tp-size", "2"]
        between = 0.03 if load.written > 1 else 0.0
        return Speed(first=0.1 if seed else 9.0, between=between, second=20.0 * seed)

    @contextmanager
    def reference(python: Path, job: Mapping[str, Any], env: object, folder: Path) -> Iterator[Slow]:
        assert (job["device"], job["dtype"]) == ("cpu", "float32")
        yield Slow()

    monkeypatch.setattr(bench, "open_engine", lambda *arguments, **options: nullcontext(Path("python")))
    monkeypatch.setattr(bench, "measure_engine", measure)
    monkeypatch.setattr(bench, "open_reference", reference)
    monkeypatch.setattr(Server, "__enter__", lambda self: self)
    monkeypatch.setattr(Server, "__exit__", lambda *arguments: None)
    return asked


def test_each_load_is_measured_in_turns_after_a_round_that_does_not_count(
    measured: list[tuple[Load, int]], mini_here: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--concurrency", "1", "4", "--input", "7", "--output", "5", "--markdown", "t.md", "--json", "t.json"]
    assert cli.main(["bench", "model", *words, "--", "--tp-size", "2"]) == 0
    assert [(load.at_once, load.read, load.written, seed) for load, seed in measured] == [
        (n, 7, 5, seed) for n in (1, 4) for seed in range(4)
    ]
    said = " ".join(capsys.readouterr().out.split())
    assert "time to first token 100 ms (100 ms to 100 ms) 200 ms (200 ms to 200 ms) 2.00 times as fast" in said
    assert "tokens a second 40.0 (20.0 to 60.0) 20.0 (10.0 to 30.0) 2.00 times as fast" in said
    table = Path("t.md").read_text()
    assert "beside transformers.Tiny, Transformers 5.0" in table
    assert "| 4 | time between tokens | 30.0 ms (30.0 ms to 30.0 ms) | 30.0 ms (30.0 ms to 30.0 ms) |" in table
    rounds = json.loads(Path("t.json").read_text())
    assert [len(row["engine"]) for row in rounds] == [3, 3]
    assert rounds[1]["load"] == {"at_once": 4, "read": 7, "written": 5}


@pytest.mark.parametrize(
    ("words", "requests", "tokens"),
    [
        (["--concurrency", "1", "16", "--input", "512", "--output", "128"], "16", str(16 * (512 + 128 + 64))),
        (["--concurrency", "1"], "8", "8192"),
        (["--input", "2048"], "8", str(8 * (2048 + 64 + 64))),
    ],
)
def test_the_engine_has_room_for_all_that_is_asked_at_once(
    measured: object, monkeypatch: pytest.MonkeyPatch, words: list[str], requests: str, tokens: str
) -> None:
    found: list[Server] = []

    def start(self: Server) -> Server:
        found.append(self)
        return self

    monkeypatch.setattr(Server, "__enter__", start)
    assert cli.main(["bench", "model", "--rounds", "1", "--timeout", "900", *words, "--", "--tp-size", "2"]) == 0
    [server] = found
    assert server.timeout == 900.0
    flags = server.flags
    assert flags[flags.index("--max-running-requests") + 1] == requests
    assert flags[flags.index("--max-total-tokens") + 1] == tokens


def test_the_engine_can_be_measured_alone(measured: list[tuple[Load, int]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "model", "--alone", "--rounds", "1", "--concurrency", "2", "--", "--tp-size", "2"]) == 0
    assert len(measured) == 2
    said = capsys.readouterr().out
    assert "time to first token  100 ms" in said
    assert "times as fast" not in said


@pytest.mark.parametrize("config", [{"llm_config": {"vocab_size": 99}}, {"vocab_size": None}, {"text_config": 3}])
def test_without_a_size_of_the_vocabulary_the_engine_is_measured_alone(
    measured: list[tuple[Load, int]], mini_here: Miniature, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    mini_here.write("model/config.json", json.dumps(config))
    words = ["bench", "model", "--rounds", "1", "--concurrency", "2"]
    assert cli.main([*words, "--alone", "--", "--tp-size", "2"]) == 0
    assert len(measured) == 2
    monkeypatch.setattr(bench, "open_reference", None)
    monkeypatch.setattr(Server, "__enter__", None)
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert "model/config.json: neither it nor its text_config has a vocab_size" in error
    assert "--alone" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "nothing is not a checkpoint"),
        (["model", "--input", "0"], "0 is not a number from 1 on"),
        (["model", "--reference", "my-model:Model"], "--reference my-model:Model is not MODULE:CLASS."),
        (["model", "--json", "model"], "model cannot be written: it is a folder."),
        (["model", "--json", "a", "--markdown", "a"], "--markdown and --json both name a."),
        (["model", "9.9"], "9.9"),
        (["model", "--", "--port", "1"], "--port cannot be passed on to the server."),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_built(
    mini_here: Miniature, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mini_here.write("model/config.json", "{}")
    try:
        status = cli.main(["bench", *words])
    except SystemExit as error:
        status = int(error.code or 0)
    assert status in (1, 2)
    assert said in capsys.readouterr().err
    assert not (mini_here.root / "dist").exists()


def test_between_one_token_there_is_no_time(measured: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "model", "--output", "1", "--concurrency", "1", "--", "--tp-size", "2"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "time between tokens" in line]
    assert "as fast" not in line
    assert line.count("not seen") == 2


def test_both_must_fit_into_memory_before_anything_is_built(
    measured: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reference model is there while the engine is."""
    monkeypatch.setattr(bench, "open_engine", None)
    monkeypatch.setattr(memory, "free_memory", lambda: 7 << 29)
    assert cli.main(["bench", "model"]) == 1
    said = "This needs about 4.0 GiB of memory (6 values, in float32 for the engine and in float32 for Transformers)"
    assert said in capsys.readouterr().err


def test_the_engine_alone_takes_less(measured: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 7 << 29)
    assert cli.main(["bench", "model", "--alone", "--", "--tp-size", "2"]) == 0


def test_weights_need_not_be_safetensors(measured: object) -> None:
    """Upstream loads other files too, and makes up weights with `--load-format dummy`."""
    Path("model/model.safetensors").unlink()
    assert cli.main(["bench", "model", "--", "--tp-size", "2"]) == 0
