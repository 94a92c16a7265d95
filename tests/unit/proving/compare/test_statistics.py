"""How far answers are from the reference model's, and whether that is too far."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from overlay_tools.errors import CompareError
from overlay_tools.proving.compare.engine import Answer, Vectors
from overlay_tools.proving.compare.statistics import Worst, compare, compare_vectors, divergence, runs_of
from overlay_tools.proving.reference import Prompt, Verdict

LOGPROBS = [math.log(p) for p in (0.5, 0.3, 0.2)]


def answer(logprobs: list[float], tokens: list[int] | None = None, chosen: int = 2) -> Answer:
    """Return an answer to two tokens, which were 0 with all of LOGPROBS likeliest."""
    top = [list(enumerate(LOGPROBS))] * len(logprobs)
    tokens = tokens or [0] * (2 + len(logprobs))
    prompt = Prompt(tokens=tokens[:chosen])
    return Answer(prompt=prompt, tokens=tokens, start=2, chosen=chosen, logprobs=logprobs, top=top)


def given(*values: list[float]) -> Vectors:
    """Return vectors that an engine gave."""
    return Vectors(values=[*values], cached=None)


def verdict(
    logprobs: list[float],
    best: list[int] | None = None,
    gaps: list[float] | None = None,
    top: list[float] | None = None,
    undecided: int | None = None,
) -> Verdict:
    """Return what the reference model says of the places 2 and later; nothing is asked of place 1."""
    count = len(logprobs)
    return Verdict(
        logprobs=[-9.0, *logprobs],
        best=[7, *(best or [0] * count)],
        gaps=[9.0, *(gaps or [0.0] * count)],
        top=[[], *[top or LOGPROBS] * count],
        undecided=undecided,
    )


def test_the_same_answers_are_the_same() -> None:
    row = compare("decode", [answer([-1.0, -2.0])], [verdict([-1.0, -2.0])], None)
    assert row.problems == []
    assert (row.distance.values, row.distance.maximum, row.distance.kl) == (2, 0.0, 0.0)
    assert (row.distance.tokens, row.distance.same) == (2, 2)


def test_mean_percentile_and_maximum_are_of_the_differences() -> None:
    wanted = [-1.0] * 200
    got = [-1.0 + (1e-4 if n % 2 else -1e-4) for n in range(197)] + [-1.0002, -1.0003, -1.0004]
    of = compare("decode", [answer(got)], [verdict(wanted)], None).distance
    assert of.mean == pytest.approx((197e-4 + 9e-4) / 200)
    assert of.p99 == pytest.approx(3e-4)
    assert of.maximum == pytest.approx(4e-4)


@pytest.mark.parametrize(("off", "too_far"), [(9e-4, False), (1.1e-3, True), (math.nan, True), (-math.inf, True)])
def test_a_logprob_in_float32_may_differ_by_a_thousandth(off: float, too_far: bool) -> None:
    row = compare("decode", [answer([-1.0, -2.0 + off])], [verdict([-1.0, -2.0])], None)
    assert any(problem.startswith("a logprob differs by") for problem in row.problems) == too_far
    if too_far:
        assert row.worst is not None
        assert (row.worst.prompt, row.worst.place) == (0, 3)


@pytest.mark.parametrize(("gap", "decided"), [(1.9e-3, 0), (2.1e-3, 1)])
def test_another_token_counts_where_the_reference_model_is_decided(gap: float, decided: int) -> None:
    row = compare("decode", [answer([-1.0, -2.0])], [verdict([-1.0, -2.0], best=[0, 1], gaps=[0, gap])], None)
    assert (row.distance.same, row.distance.decided, row.distance.tied) == (1, decided, 1 - decided)
    assert bool(row.problems) == bool(decided)


def test_tokens_of_a_prompt_are_no_choice() -> None:
    row = compare("prefill", [answer([-1.0], chosen=3)], [verdict([-1.0], best=[1], gaps=[5.0])], None)
    assert row.distance.tokens == 0
    assert row.problems == []


def test_what_is_behind_tied_experts_is_left_out() -> None:
    got = [answer([-1.0, -2.0, -5.0]), answer([-1.0])]
    row = compare("decode", got, [verdict([-1.0, -2.0, -9.0], undecided=3), verdict([-1.0])], None)
    assert (row.left_out, row.distance.values, row.problems) == (1, 3, [])


def test_where_all_is_left_out_nothing_is_right() -> None:
    with pytest.raises(CompareError, match="decode: two experts are tied in each prompt, so that nothing is compared"):
        compare("decode", [answer([-1.0])], [verdict([-9.0], undecided=0)], None)
    with pytest.raises(CompareError, match="alone: two experts are tied in each prompt"):
        compare_vectors("alone", given([1.0]), [None], None)
    with pytest.raises(CompareError, match="alone: two experts are tied in each prompt"):
        compare_vectors("alone", given([1.0]), [[1.0]], [None])


def test_a_distribution_that_differs_where_no_token_was_taken_is_found() -> None:
    other = [math.log(p) for p in (0.5, 0.25, 0.25)]
    row = compare("decode", [answer([-1.0])], [verdict([-1.0], top=other)], None)
    assert [problem for problem in row.problems if problem.startswith("a distribution diverges by")]


def test_the_divergence_is_that_of_the_definition() -> None:
    p, q = (0.6, 0.3, 0.1), (0.5, 0.25, 0.25)
    whole = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert divergence([(n, math.log(b)) for n, b in enumerate(q)], [math.log(a) for a in p]) == pytest.approx(whole)
    # Of two tokens, the third is all others.
    known = divergence([(n, math.log(b)) for n, b in enumerate(q[:2])], [math.log(a) for a in p[:2]])
    assert known == pytest.approx(whole)
    assert divergence([(0, math.log(0.5))], [-math.inf]) == pytest.approx(math.log(2))


def test_in_another_dtype_the_bound_is_the_error_of_transformers() -> None:
    # The fewer values there are, the more of their distance may be chance.
    for values, most in ((10_000, 0.013), (100, 0.022)):
        exact = [verdict([-1.0] * values)]
        near = [-1.0 + (0.01 if n % 2 else -0.01) for n in range(values)]
        rounded = [verdict(near, best=[0] * (values - 2) + [1, 1])]
        for far in (most - 0.0005, most + 0.0005):
            row = compare("decode", [answer([-1.0 - far] * values)], exact, rounded)
            assert row.own is not None
            assert row.own.mean == pytest.approx(0.01)
            assert (row.problems == []) == (far < most)
    wrong = verdict([-1.0] * 100, best=[1] * 100, gaps=[4.9] * 100)  # of every token that the engine gave
    (problem,) = compare("decode", [answer([-1.0] * 100)], [wrong], [replace(wrong, gaps=[0.0] * 100)]).problems
    assert problem == "100 of 100 tokens are others than the decided choice of the reference model"
    away = verdict([-1.0] * 100, best=[0] * 97 + [1] * 3, gaps=[0.0] * 97 + [0.5, 0.5, 0.015])
    row = compare("decode", [answer([-1.0] * 100)], [away], rounded)
    assert (row.distance.decided, row.distance.tied) == (2, 1)


def test_differences_of_values_are_parts_of_the_vectors_mean_length() -> None:
    exact = [[6.0, 8.0], None, [0.0, 0.0]]
    row = compare_vectors("alone", given([6.004, 8.0], [9.0, 9.0], [0.0, 0.0]), exact, None)
    assert (row.distance.values, row.left_out, row.problems) == (4, 1, [])
    assert row.distance.maximum == pytest.approx(0.0008)
    assert row.worst == Worst(prompt=0, place=0, engine=6.004, reference=6.0)
    [problem] = compare_vectors("alone", given([6.0, 8.006], [0.0] * 2, [0.0] * 2), exact, None).problems
    assert problem == "a value differs by 0.0012, which may be 0.001"
    # A score that happens to be nearly 0 is as good as the others.
    assert compare_vectors("alone", given([2.0], [-3.0], [0.00101]), [[2.0], [-3.0], [0.001]], None).problems == []
    assert compare_vectors("alone", given([0.0]), [[0.0]], None).problems == []
    assert compare_vectors("alone", given([math.nan, 4.0], [0.0] * 2, [0.0] * 2), exact, None).problems


@pytest.mark.parametrize("got", [[], [3.0]])
def test_a_vector_of_another_length_is_an_error(got: list[float]) -> None:
    with pytest.raises(CompareError, match=f"The engine gives {len(got)} values for a text, the reference model 2"):
        compare_vectors("alone", given(got, [3.0, 4.0]), [[3.0, 4.0]] * 2, None)


def test_in_another_dtype_a_vector_may_be_as_far_as_transformers() -> None:
    def problems(count: int, value: float) -> list[str]:
        exact: list[list[float] | None] = [[1.0] * 10] * count
        rounded: list[list[float] | None] = [[1.01] * 10] * count
        return compare_vectors("alone", given(*[[value] * 10] * count), exact, rounded).problems

    assert problems(100, 1.02) == []
    assert problems(100, 1.03)
    assert problems(4, 1.05) == []  # few may be far by chance, each in all of its values


def test_the_reference_model_is_asked_for_what_the_engine_found_likeliest() -> None:
    assert runs_of([answer([-1.0], tokens=[4, 5, 6])]) == [
        {"tokens": [4, 5, 6], "text": "", "images": [], "top": [[], [0, 1, 2]]}
    ]


def test_a_picture_is_not_what_a_model_says() -> None:
    """An engine has numbers of its own in the place of a picture's tokens."""
    one = answer([math.log(0.5), -50.0, math.log(0.5)], chosen=5)
    seen = replace(one, prompt=Prompt(tokens=[0] * 5, images=["a.png"], places=[3]))
    of = verdict([math.log(0.5)] * 3)
    assert compare("prefill", [one], [of], None).problems
    row = compare("prefill", [seen], [of], None)
    assert (row.problems, row.distance.values, row.left_out) == ([], 2, 0)
