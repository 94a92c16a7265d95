"""A comparison on a terminal and as a page."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from overlay_tools.proving.compare.comparison import Comparison
from overlay_tools.proving.compare.modules import first_difference
from overlay_tools.proving.compare.statistics import Distance, Row, Worst
from overlay_tools.proving.reference import Described, Prompt
from overlay_tools.report.comparison import print_comparison, render_comparison

DISTANCE = Distance(
    values=100, mean=1e-5, p99=2e-5, maximum=3e-5, kl=0.0, most_kl=1e-9, tokens=24, same=23, decided=0, tied=1
)
ROW = Row(
    way="decode",
    distance=DISTANCE,
    own=None,
    left_out=3,
    worst=Worst(prompt=1, place=7, engine=-1.25, reference=-1.5),
    cached=64,
    drafted=2.5,
)
SAME = Comparison(
    checkpoint="models/<tiny>",
    release="1.0",
    device="CPU",
    dtype="float32",
    described=Described(
        reference="transformers.LlamaForCausalLM",
        runs_in="transformers 5",
        prompts=[Prompt(tokens=[1]), Prompt(tokens=[2, 3])],
    ),
    rows=[ROW],
)
PARTED = replace(
    SAME,
    rows=[replace(ROW, problems=["a logprob differs by 0.5, which may be 0.001"])],
    difference=first_difference(
        [
            {"name": "layers.0.self_attn", "engine": None, "error": None, "own": None},
            {"name": "layers.0.mlp", "engine": "layers.0.mlp", "error": 0.25, "own": None},
        ]
    ),
)


def test_a_line_has_all_figures_of_a_way(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(SAME)
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("  decode"))
    for figure in (
        "100",
        "1.0e-05",
        "2.0e-05",
        "3.0e-05",
        "1.0e-09",
        "23 of 24",
        "64 tokens cached",
        "2.50 tokens a step",
    ):
        assert figure in line
    assert "3 left out, where experts are tied" in line
    assert "in nats" in said
    assert "2, of 1 to 2 tokens" in said
    assert "The engine serves what the reference model computes." in said


def test_vectors_are_said_to_be_compared_by_their_length(capsys: pytest.CaptureFixture[str]) -> None:
    described = replace(SAME.described, vectors=True)
    print_comparison(replace(SAME, described=described))
    assert "parts of the vectors' mean length" in capsys.readouterr().out
    assert "parts of the vectors" in render_comparison(replace(SAME, described=described))


def test_where_the_two_part_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(PARTED)
    said = capsys.readouterr().out
    assert "decode: a logprob differs by 0.5, which may be 0.001." in said
    assert "The first module that differs is layers.0.mlp: by 0.25 of its output's size, which may be 0.0001." in said
    assert "The engine does not serve what the reference model computes." in said


def test_the_error_of_transformers_stands_below(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(replace(SAME, rows=[replace(ROW, own=replace(DISTANCE, mean=5e-5))]))
    line = next(line for line in capsys.readouterr().out.splitlines() if "Transformers" in line and "5.0e-05" in line)
    assert "cached" not in line


def test_the_page_has_what_the_terminal_has() -> None:
    page = render_comparison(PARTED)
    assert "models/&lt;tiny&gt;" in page
    for text in (
        "does not serve",
        "layers.0.mlp",
        "2.5e-01",
        "the engine calls none of this name",
        "prompt 2, place 7",
    ):
        assert text in page
    assert "<script" not in page
    assert "Modules" not in render_comparison(SAME)


def test_the_json_has_all_of_it() -> None:
    data = json.loads(PARTED.to_json())
    assert data["same"] is False
    assert data["rows"][0]["distance"]["maximum"] == 3e-5
    assert data["difference"]["module"]["name"] == "layers.0.mlp"
    assert json.loads(SAME.to_json())["same"] is True
    broken = replace(SAME, rows=[replace(ROW, distance=replace(DISTANCE, maximum=math.inf, kl=None))])
    assert json.loads(broken.to_json())["rows"][0]["distance"]["maximum"] == "inf"


def test_pictures_are_counted_or_it_is_said_why_there_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    seen = Prompt(tokens=[1], sent=[1], text="<image>", images=["a.png", "b.png"], places=[0])
    described = replace(SAME.described, prompts=[seen])
    print_comparison(replace(SAME, described=described))
    assert "pictures   2\n" in capsys.readouterr().out
    print_comparison(replace(SAME, described=replace(SAME.described, unseen="no prompt has one")))
    assert "pictures   not compared: no prompt has one" in capsys.readouterr().out


def test_what_was_not_cached_is_said_where_it_should_have_been(capsys: pytest.CaptureFixture[str]) -> None:
    for cached, said in {0: "no token was cached", None: "the engine does not tell what was cached"}.items():
        print_comparison(replace(SAME, rows=[replace(ROW, way="from the cache", cached=cached)]))
        assert said in capsys.readouterr().out
        print_comparison(replace(SAME, rows=[replace(ROW, way="decode", cached=cached)]))
        assert "cached" not in capsys.readouterr().out
