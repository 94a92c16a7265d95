"""How far an engine's answers are from a reference model's, beside how far they may be."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from overlay_tools.errors import CompareError
from overlay_tools.proving.compare.engine import Answer, Vectors
from overlay_tools.proving.reference import Verdict

_FAR = 1e-3  # nats that logprobs in float32 may differ by
_FAR_KL = 1e-5  # nats that distributions in float32 may diverge by
_TIMES = 1.2  # the error of Transformers that an engine may have in another dtype, as far as many values show it
_CHANCE = 10.0  # divided by the root of how many they are, what chance may add to that: few have a large one among them


@dataclass(frozen=True, kw_only=True, slots=True)
class Distance:
    """How far answers are from the reference model's.

    - `values`: how many logprobs are compared; `mean`, `p99`, `maximum`: of their differences, in nats.
    - `kl`, `most_kl`: the mean and the largest Kullback-Leibler divergence of the engine's distribution from the
      reference model's, in nats: over the engine's likeliest tokens, and all others as one. None where it was not asked
      for any.
    - `tokens`: how many tokens were chosen; `same`: how many of them are the reference model's own choice; `decided`
      and `tied`: the others, by whether the reference model is decided there.
    """

    values: int
    mean: float
    p99: float
    maximum: float
    kl: float | None
    most_kl: float | None
    tokens: int
    same: int
    decided: int
    tied: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Worst:
    """Where an answer is farthest: the number of its prompt, the place in its tokens, both logprobs of the token."""

    prompt: int
    place: int
    engine: float
    reference: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One way in which the engine has computed the answers.

    - `own`: how far Transformers itself is in the dtype of the engine, None in float32.
    - `left_out`: logprobs behind a place where rounding chooses an expert; no one can say which is right there.
    - `cached`: tokens from the cache, None where the engine does not tell.
    - `drafted`: tokens a step, where drafts were made.
    - `problems`: what is out of bounds, in words.
    """

    way: str
    distance: Distance
    own: Distance | None
    left_out: int
    worst: Worst | None
    cached: int | None
    drafted: float | None
    problems: list[str] = field(default_factory=list)


def compare(way: str, answers: Sequence[Answer], exact: Sequence[Verdict], rounded: Sequence[Verdict] | None) -> Row:
    """Compare the engine's answers with what the reference model says of them.

    Parameters: `exact`, what it says in float32; `rounded`, in the dtype of the engine if that is another.
    Raises CompareError if nothing is left to compare.
    """
    own = None
    tie = 2 * _FAR  # two logprobs may each be off by so much
    if rounded is not None:
        theirs = [_as_answer(answer, verdict) for answer, verdict in zip(answers, rounded, strict=True)]
        own = _distance(theirs, exact, 0.0)[0]
        tie = 2 * own.maximum
    distance, worst, left_out = _distance(answers, exact, tie)
    if left_out and not distance.values:
        raise _nothing(way)
    steps = [answer.drafted for answer in answers if answer.drafted is not None]
    return Row(
        way=way,
        distance=distance,
        own=own,
        left_out=left_out,
        worst=worst,
        cached=sum(answer.cached for answer in answers),
        drafted=statistics.fmean(steps) if steps else None,
        problems=_problems(distance, own),
    )


def compare_vectors(
    way: str,
    vectors: Vectors,
    exact: Sequence[Sequence[float] | None],
    rounded: Sequence[Sequence[float] | None] | None,
) -> Row:
    """Compare the engine's vectors with those of the reference model, each value as a part of their mean length.

    Parameters: `exact`, the reference model's in float32, None where rounding chooses an expert; `rounded`, in the
    dtype of the engine if that is another.
    Raises CompareError if nothing is left to compare, or a vector has another length.
    """
    distance, worst = _distance_of_vectors(vectors.values, exact)
    own = _distance_of_vectors(rounded, exact)[0] if rounded is not None else None
    if not distance.values or (own and not own.values):
        raise _nothing(way)
    return Row(
        way=way,
        distance=distance,
        own=own,
        left_out=exact.count(None),
        worst=worst,
        cached=vectors.cached,
        drafted=None,
        problems=_problems(distance, own, "value", len(exact) - exact.count(None)),
    )


def _nothing(way: str) -> CompareError:
    return CompareError(
        f"{way}: two experts are tied in each prompt, so that nothing is compared.",
        hint="Name other prompts with --prompts.",
    )


def _distance_of_vectors(
    vectors: Sequence[Sequence[float] | None], exact: Sequence[Sequence[float] | None]
) -> tuple[Distance, Worst | None]:
    differences: list[float] = []
    worst, farthest = None, -1.0
    # Of all, for a score may happen to be nearly 0.
    length = statistics.fmean([math.hypot(*wanted) for wanted in exact if wanted is not None] or [0.0]) or 1.0
    for number, (got, wanted) in enumerate(zip(vectors, exact, strict=True)):
        if wanted is None or got is None:
            continue
        if len(got) != len(wanted):
            raise CompareError(f"The engine gives {len(got)} values for a text, the reference model {len(wanted)}.")
        for place, (a, b) in enumerate(zip(got, wanted, strict=True)):
            difference = abs(a - b) / length if math.isfinite(a) else math.inf
            if difference > farthest:
                worst, farthest = Worst(prompt=number, place=place, engine=a, reference=b), difference
            differences.append(difference)
    return _summary(differences), worst


def _summary(differences: list[float], **more: Any) -> Distance:  # noqa: ANN401
    """Sum up differences, and what `more` there is to say."""
    differences.sort()
    found: dict[str, Any] = {"kl": None, "most_kl": None, "tokens": 0, "same": 0, "decided": 0, "tied": 0, **more}
    return Distance(
        values=len(differences),
        mean=statistics.fmean(differences) if differences else 0.0,
        p99=differences[len(differences) * 99 // 100] if differences else 0.0,
        maximum=differences[-1] if differences else 0.0,
        **found,
    )


def _problems(of: Distance, own: Distance | None, value: str = "logprob", drawn: int | None = None) -> list[str]:
    """Say what is out of bounds: fixed ones in float32, and else those of Transformers' own error.

    Parameters: `value`, what is compared; `drawn`, how many times chance had a say, once for each value if None: those
    of a vector are near or far together.
    """
    if own is None:
        limits = {"maximum": _FAR, "most_kl": _FAR_KL}
        most = 0
    else:
        times = _TIMES + _CHANCE / math.sqrt(max(of.values if drawn is None else drawn, 1))
        limits = {name: times * (getattr(own, name) or 0.0) for name in ("mean", "p99", "kl")}
        most = max(of.tokens // 100, own.tokens - own.same)
    words = {
        "maximum": f"a {value} differs by",
        "most_kl": "a distribution diverges by",
        "mean": f"{value}s differ in the mean by",
        "p99": f"one in a hundred {value}s differs by",
        "kl": "distributions diverge in the mean by",
    }
    problems = [
        f"{words[name]} {getattr(of, name):.3g}, which may be {limit:.3g}"
        for name, limit in limits.items()
        if getattr(of, name) is not None and not getattr(of, name) <= limit
    ]
    if of.decided > most:
        problems.append(f"{of.decided} of {of.tokens} tokens are others than the decided choice of the reference model")
    return problems


def _as_answer(answer: Answer, verdict: Verdict) -> Answer:
    """Take a reference model's word for the engine's: its logprobs of the same tokens, and what it would choose."""
    places = range(answer.start - 1, len(answer.tokens) - 1)
    chosen = range(answer.chosen, len(answer.tokens))
    return replace(
        answer,
        tokens=[*answer.tokens[: answer.chosen], *(verdict.best[place - 1] for place in chosen)],
        logprobs=[verdict.logprobs[place] for place in places],
        top=[
            [(token, logprob) for (token, _), logprob in zip(top, verdict.top[place], strict=True)]
            for place, top in zip(places, answer.top, strict=True)
        ],
    )


def _distance(answers: Sequence[Answer], exact: Sequence[Verdict], tie: float) -> tuple[Distance, Worst | None, int]:
    differences: list[float] = []
    divergences: list[float] = []
    worst, farthest, left_out, tokens, same, decided = None, -1.0, 0, 0, 0, 0
    for number, (answer, verdict) in enumerate(zip(answers, exact, strict=True)):
        unsaid = {*answer.prompt.places}  # no model says what a picture will be
        for at, got in enumerate(answer.logprobs):
            place = answer.start + at
            if place in unsaid:
                continue
            if verdict.undecided is not None and place > verdict.undecided:
                left_out += 1
                continue
            wanted = verdict.logprobs[place - 1]
            difference = abs(got - wanted) if math.isfinite(got) else math.inf
            if difference > farthest:
                worst, farthest = Worst(prompt=number, place=place, engine=got, reference=wanted), difference
            differences.append(difference)
            if answer.top[at]:
                divergences.append(divergence(answer.top[at], verdict.top[place - 1]))
            if place >= answer.chosen:
                tokens += 1
                same += answer.tokens[place] == verdict.best[place - 1]
                decided += verdict.gaps[place - 1] > tie
    distance = _summary(
        differences,
        kl=statistics.fmean(divergences) if divergences else None,
        most_kl=max(divergences, default=None),
        tokens=tokens,
        same=same,
        decided=decided,
        tied=tokens - same - decided,
    )
    return distance, worst, left_out


def divergence(engine: Sequence[tuple[int, float]], reference: Sequence[float]) -> float:
    """Return the divergence of the engine's distribution from the reference model's, over what is known of both.

    sum p log(p / q) over the engine's likeliest tokens, with p the reference model's and q the engine's, and all
    other tokens as one. That is at most the divergence of the whole distributions (the data processing inequality).
    Parameters: the tokens with the engine's logprobs, and the reference model's, in nats.
    """
    pairs = [(math.exp(wanted), wanted - got) for (_, got), wanted in zip(engine, reference, strict=True)]
    total = sum(p * log_ratio for p, log_ratio in pairs if p > 0)
    rest_p = 1 - math.fsum(p for p, _ in pairs)
    rest_q = 1 - math.fsum(math.exp(got) for _, got in engine)
    if rest_p > 1e-6 and rest_q > 1e-6:  # less is what rounding leaves
        total += rest_p * math.log(rest_p / rest_q)
    return max(total, 0.0) if total == total else math.inf


def runs_of(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Return what a reference model is to judge: the tokens, and at each place the tokens that were likeliest."""
    return [
        {
            "tokens": answer.tokens,
            "text": answer.prompt.text,
            "images": answer.prompt.images,
            "top": [[] for _ in range(answer.start - 1)] + [[token for token, _ in top] for top in answer.top],
        }
        for answer in answers
    ]
