"""A comparison from its questions to its rows, with stand-ins for the engine and the reference model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from overlay_tools.engines.server import Server
from overlay_tools.errors import CompareError
from overlay_tools.proving.compare.comparison import (
    Engine,
    ask_engine,
    ask_engine_for_vectors,
    judge,
    judge_vectors,
    locate,
)
from overlay_tools.proving.compare.modules import Difference
from overlay_tools.proving.reference import Prompt, Reference, Verdict

from unit.proving.compare.stand_in import StandIn

PROMPTS = [Prompt(tokens=[10, 20]), Prompt(tokens=[30])]


class Engines:
    """Gives the stand-in as every server, and notes with which arguments."""

    version, dtype, tokens = "0.5.23", "float32", 24

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.started: list[tuple[str, dict[str, object]]] = []
        self.capturing: list[bool] = []

    @contextmanager
    def serving(
        self,
        checkpoint: Path,
        way: str,
        arguments: Mapping[str, object] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Iterator[Server]:
        self.started.append((way, dict(arguments or {})))
        if env and "SGLANG_OVERLAY_CAPTURE" in env:
            assert (Path(env["PYTHONPATH"]) / "sitecustomize.py").is_file()
        yield self.server


class Says:
    """A reference model whose logprob of token t at place p is -(t + p / 100), but for one token, `off` more."""

    def __init__(self, but: int | None = None, off: float = 1.0) -> None:
        self.but, self.off = but, off
        self.located: list[list[int]] = []

    def judge(self, runs: Sequence[Mapping[str, Any]], dtype: str) -> list[Verdict]:
        return [self.verdict(run["tokens"], run["top"]) for run in runs]

    def verdict(self, tokens: list[int], top: list[list[int]]) -> Verdict:
        given = [self.of(t, place) for place, t in enumerate(tokens)]
        return Verdict(
            logprobs=given[1:],
            best=tokens[1:],
            gaps=[0.0] * (len(tokens) - 1),
            top=[[self.of(t, place + 1) for t in ids] for place, ids in enumerate(top)],
            undecided=None,
        )

    def embed(self, prompts: Sequence[Prompt], dtype: str) -> list[list[float] | None]:
        read = [prompt.tokens for prompt in prompts]
        return [[3.0 * len(p) + (0.01 * self.off if self.but in p else 0.0), 4.0 * len(p)] for p in read]

    def of(self, token: int, place: int) -> float:
        return -(token + place / 100) - (self.off if token == self.but else 0.0)

    def locate(self, read: Prompt, captured: Path, dtype: str) -> list[dict[str, Any]]:
        self.located.append(read.tokens)
        return [{"name": "norm", "engine": "norm", "error": 1.0, "own": None}]


@pytest.fixture
def engines(stand_in: StandIn, server: Server, tmp_path: Path) -> Engines:
    return Engines(server, tmp_path)


def test_chunks_and_drafts_have_a_server_of_their_own(engines: Engines, stand_in: StandIn) -> None:
    answers = ask_engine(cast(Engine, engines), Path("model"), PROMPTS, drafts=True, state=True)
    assert [way for way, _ in engines.started] == ["as it is", "in chunks", "with drafts"]
    assert engines.started[1][1] == {"chunked_prefill_size": 64}
    assert engines.started[2][1]["speculative_algorithm"] == "NEXTN"
    assert [*answers][-2:] == ["in chunks", "with drafts"]
    assert "with drafts" not in ask_engine(cast(Engine, engines), Path("model"), PROMPTS, drafts=False, state=True)


def test_answers_are_as_long_as_is_asked(engines: Engines) -> None:
    engines.tokens = 3
    answers = ask_engine(cast(Engine, engines), Path("model"), PROMPTS, drafts=True, state=True)
    lengths = {way: len(of[0].tokens) - of[0].chosen for way, of in answers.items()}
    assert {way for way, length in lengths.items() if length != 3} == {"prefill", "answer as prompt"}


def test_each_way_is_judged_by_itself(engines: Engines) -> None:
    answers = ask_engine(cast(Engine, engines), Path("model"), PROMPTS, drafts=False, state=True)
    rows = judge(answers, cast(Reference, Says()), "float32")
    assert [row.way for row in rows] == [*answers]
    assert all(row.distance.values for row in rows)
    assert all(row.problems == [] and row.own is None for row in rows)
    of_prompt = {row.way: bool(row.problems) for row in judge(answers, cast(Reference, Says(but=20)), "float32")}
    assert [way for way, wrong in of_prompt.items() if wrong] == ["prefill"]


def test_in_another_dtype_the_reference_model_is_asked_twice(engines: Engines) -> None:
    answers = ask_engine(cast(Engine, engines), Path("model"), PROMPTS, drafts=False, state=True)
    assert all(row.own is not None for row in judge(answers, cast(Reference, Says()), "bfloat16"))


@pytest.mark.parametrize(
    ("way", "but", "asked", "passes"),
    [
        ("prefill", 20, [[10, 20]], [10, 20]),
        ("decode", 44, [[10, 20]], [10, 20, *range(21, 44)]),
        ("from the cache", 44, [[10, 20], [10, 20]], [10, 20, *range(21, 44)]),
        ("further turn", 67, [[10, 20], [10, 20, *range(21, 45)]], [10, 20, *range(21, 68)]),
        ("answer as prompt", 44, [[10, 20, *range(21, 45)]], [10, 20, *range(21, 45)]),
        ("in chunks", 44, [[10, 20]], [10, 20, *range(21, 44)]),
    ],
)
def test_the_way_that_differs_is_gone_again(
    way: str, but: int, asked: list[list[int]], passes: list[int], engines: Engines, stand_in: StandIn
) -> None:
    answers = ask_engine(cast(Engine, engines), Path("model"), PROMPTS[:1], drafts=False, state=True)
    says = Says(but=but)
    rows = [row for row in judge(answers, cast(Reference, says), "float32") if row.way == way]
    assert rows[0].problems
    stand_in.asked.clear()
    found = locate(cast(Engine, engines), Path("model"), cast(Reference, says), PROMPTS[:1], answers, rows)
    assert isinstance(found, Difference)
    assert [body["input_ids"][0] for _, body in stand_in.asked] == asked
    assert says.located[0][: len(passes)] == passes
    assert engines.started[-1][1]["disable_cuda_graph"] is True
    assert ("chunked_prefill_size" in engines.started[-1][1]) == (way == "in chunks")
    assert not (engines.folder / "captured" / "on").exists()


def test_what_is_computed_together_is_not_looked_into(engines: Engines) -> None:
    answers = ask_engine(cast(Engine, engines), Path("model"), PROMPTS, drafts=False, state=True)
    says = Says(but=44)
    rows = [row for row in judge(answers, cast(Reference, says), "float32") if row.way == "in a batch"]
    found = locate(cast(Engine, engines), Path("model"), cast(Reference, says), PROMPTS, answers, rows)
    assert "in a batch" in str(found)


def test_vectors_are_asked_for_alone_again_at_once_and_in_chunks(engines: Engines, stand_in: StandIn) -> None:
    vectors = ask_engine_for_vectors(cast(Engine, engines), Path("model"), PROMPTS)
    assert [*vectors] == ["alone", "from the cache", "in a batch", "in chunks"]
    assert [way for way, _ in engines.started] == ["as it is", "in chunks"]
    assert engines.started[1][1] == {"chunked_prefill_size": 64}
    asked = [body.get("input_ids") for path, body in stand_in.asked if path == "encode"]
    prompts = [prompt.tokens for prompt in PROMPTS]
    assert asked == [*([prompt] for prompt in prompts * 2), prompts, *([prompt] for prompt in prompts)]
    assert ("flush_cache", {}) in stand_in.asked
    rows = judge_vectors(vectors, PROMPTS, cast(Reference, Says()), "float32")
    assert [(row.way, row.distance.values, row.problems) for row in rows] == [(way, 4, []) for way in vectors]
    assert all(row.own is not None for row in judge_vectors(vectors, PROMPTS, cast(Reference, Says()), "bfloat16"))


def test_texts_do_not_wait_for_ever(engines: Engines) -> None:
    """Before 0.5.11, those of upstream's own models would: more are asked at once than may run."""
    engines.version = "0.5.10.post1"
    ask_engine_for_vectors(cast(Engine, engines), Path("model"), PROMPTS)
    assert [arguments["disable_overlap_schedule"] for _, arguments in engines.started] == [True, True]


def test_a_vector_that_differs_is_looked_into(engines: Engines, stand_in: StandIn) -> None:
    vectors = ask_engine_for_vectors(cast(Engine, engines), Path("model"), PROMPTS)
    says = Says(but=30)
    rows = judge_vectors(vectors, PROMPTS, cast(Reference, says), "float32")
    assert ["a value differs by 0.00133, which may be 0.001" in row.problems for row in rows] == [True] * 4
    for row in (rows[0], rows[1], rows[3]):
        stand_in.asked.clear()
        found = locate(cast(Engine, engines), Path("model"), cast(Reference, says), PROMPTS, {}, [row])
        assert isinstance(found, Difference)
        assert says.located[-1] == [30]
        times = 2 if row.way == "from the cache" else 1
        assert [body["input_ids"] for _, body in stand_in.asked] == [[[30]]] * times


@pytest.mark.parametrize("off", [math.nan, math.inf])
def test_nothing_is_held_against_what_is_no_number(engines: Engines, off: float) -> None:
    """In float16, Transformers' own error would be infinite, and any engine as good."""
    says = cast(Reference, Says(but=20, off=off))
    answers = ask_engine(cast(Engine, engines), Path("model"), PROMPTS, drafts=False, state=True)
    with pytest.raises(CompareError, match=r"The reference model gives numbers that are not finite, in float32\."):
        judge(answers, says, "float16")
    vectors = ask_engine_for_vectors(cast(Engine, engines), Path("model"), PROMPTS)
    with pytest.raises(CompareError, match=r"The reference model gives numbers that are not finite, in float32\."):
        judge_vectors(vectors, PROMPTS, says, "float32")
