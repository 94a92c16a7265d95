from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from overlay_tools.errors import AccuracyError
from overlay_tools.proving.accuracy.scores import Earlier, Pair, Results, Score, dump_engine

ABOUT = {
    "checkpoint": "model",
    "sglang": "0.5.23",
    "device": "CPU",
    "dtype": "float32",
    "arguments": ["--tp-size", "2"],
}

ENGINE = {"metric": "acc", "digest": "d", "right": [1]}


def score(right: str, digest: str = "d", metric: str = "acc") -> Score:
    return Score(metric=metric, digest=digest, right=[int(each) for each in right])


def pair(engine: str, other: str) -> Pair:
    return Pair(engine=score(engine), other=score(other))


def test_a_score_is_a_share_with_its_standard_error() -> None:
    one = score("1101")
    assert one.mean == 0.75
    assert one.error == pytest.approx(0.25)  # the standard deviation, 0.5, by the root of 4
    assert score("1").error == 0


def test_documents_are_compared_one_by_one() -> None:
    one = pair("11100", "10011")
    assert one.difference == pytest.approx(0)
    assert one.alone == (2, 2)
    assert pair("1000", "1110").difference == pytest.approx(-0.5)
    assert pair("1000", "1110").alone == (0, 2)


@pytest.mark.parametrize(
    ("engine", "other", "low", "high"),
    [
        # 5 and 1 documents with the ones that are added make 6 and 2 of 22: 4/22 +- 1.96 sqrt((8/22 - (4/22)^2) / 22)
        ("1" * 5 + "0" + "1" * 14, "0" * 5 + "1" + "1" * 14, -0.05844, 0.42207),
        ("0" + "1" * 5 + "1" * 14, "1" + "0" * 5 + "1" * 14, -0.05844, 0.42207),
        ("0" * 6 + "1" * 14, "1" * 20, -0.49747, -0.04799),  # 1 and 7 of 22
        ("1" * 20, "1" * 20, -0.12599, 0.12599),  # 1 and 1 of 22: where no document differs, one might have
        ("0", "1", -1.0, 0.73354),  # 1 and 2 of 3
    ],
)
def test_the_interval_is_that_of_bonett_and_price(engine: str, other: str, low: float, high: float) -> None:
    assert pair(engine, other).interval == pytest.approx((low, high), abs=1e-5)
    better, worse = pair(other, engine).interval
    assert (-worse, -better) == pytest.approx((low, high), abs=1e-5)


def test_the_interval_goes_by_documents_and_not_by_scores() -> None:
    """Two models with the same scores each, which are right on the same documents or on others."""
    alike, other = pair("1" * 50 + "0" * 50, "1" * 52 + "0" * 48), pair("1" * 50 + "0" * 50, "0" * 48 + "1" * 52)
    assert alike.difference == other.difference
    assert alike.interval[1] < 0.1 * other.interval[1] + 0.05


@pytest.mark.parametrize(("wrong", "worse"), [(4, False), (5, True)])
def test_of_20_documents_five_are_needed(wrong: int, worse: bool) -> None:
    one = pair("0" * wrong + "1" * (20 - wrong), "1" * 20)
    assert one.is_worse(0.0) is worse
    assert not replace(one, engine=one.other, other=one.engine).is_worse(0.0)  # to be better is not to be worse


def test_the_bound_is_what_the_engine_may_be_worse_by() -> None:
    one = pair("0" * 30 + "1" * 70, "1" * 100)  # 1 and 31 of 102: -0.294 and 0.0925 to either side
    assert one.interval[1] == pytest.approx(-0.2016, abs=1e-4)
    assert one.is_worse(0.2)
    assert not one.is_worse(0.21)


@pytest.fixture
def results() -> Results:
    return Results(
        asked={"lm-eval": "1", "--limit": None},
        about=ABOUT,
        bound=0.0,
        against="Transformers in float32",
        tasks={"a": pair("0" * 9, "1" * 9), "b": pair("1101", "1101")},
    )


def test_what_is_worse_is_named(results: Results) -> None:
    assert results.worse == ["a"]
    assert replace(results, bound=0.95).worse == []


def test_results_are_read_as_they_were_written(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(results.to_json())
    written = json.loads(path.read_text())
    assert written["tasks"]["b"]["interval"] == list(results.tasks["b"].interval)
    assert written["worse"] == ["a"]
    earlier = Earlier.read(path)
    earlier.check(results.asked, ["b", "a"])
    assert earlier.score("b", score("0000")) == score("1101")  # the engine's, not Transformers'


def test_what_the_engine_did_is_read_before_it_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    path.write_text(dump_engine({"--limit": 5}, ABOUT, {"a": score("101")}))
    earlier = Earlier.read(path)
    assert (earlier.asked, earlier.about, earlier.scores) == ({"--limit": 5}, ABOUT, {"a": score("101")})


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"tasks": {}}', '{"asked": {}, "tasks": {"a": {"engine": 1}}}', "[" * 100_000]
    + [
        json.dumps({"asked": {}, "about": ABOUT, "tasks": {"a": {"engine": {**ENGINE, "right": right}}}})
        for right in ([], [0.5], 7)
    ]
    + [
        json.dumps({"asked": {}, "about": about, "tasks": {"a": {"engine": ENGINE}}})
        for about in ({}, {**ABOUT, "sglang": 5}, {**ABOUT, "arguments": 5}, {**ABOUT, "arguments": [5]})
    ]
    + ['{"asked": {}, "asked": {}, "tasks": {}}'],
)
def test_what_is_no_result_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(AccuracyError, match=r"results\.json is not what an earlier run has written\."):
        Earlier.read(path)


def test_a_folder_is_no_result_and_is_not_to_be_removed(tmp_path: Path) -> None:
    with pytest.raises(AccuracyError, match="Is a directory") as caught:
        Earlier.read(tmp_path)
    assert caught.value.hint == "Name the file that an earlier run has written with --json."


def earlier(**scores: Score) -> Earlier:
    return Earlier(path=Path("r.json"), asked={"lm-eval": "1", "--limit": 5}, about=ABOUT, scores=scores)


def test_other_settings_and_tasks_are_named_before_anything_is_asked() -> None:
    with pytest.raises(AccuracyError) as caught:
        earlier(a=score("1")).check({"lm-eval": "1", "--limit": None, "sglang": "0.5.22"}, ["a", "b"])
    assert caught.value.problems == (
        "r.json: --limit was 5 there, and is None here.",
        "r.json: sglang was 0.5.23 there, and is 0.5.22 here.",
        "r.json has no task b.",
    )


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (score("11", digest="e"), "other prompts, choices or answers, or other settings"),
        (score("11", metric="other"), "other prompts, choices or answers, or other settings"),
        (score("111", digest="e"), "3 documents there and 2 here"),
    ],
)
def test_other_documents_are_never_compared(there: Score, said: str) -> None:
    with pytest.raises(AccuracyError, match=rf"r\.json: a has {said}\."):
        earlier(a=there).score("a", score("11"))
