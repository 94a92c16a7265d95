"""Scores of two models on the same documents, and whether one is worse than the other."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from overlay_tools.errors import AccuracyError
from overlay_tools.user_files import parse_json, read_text

_WRITTEN = "Name the file that an earlier run has written with --json."
_QUANTILE = 1.959964  # of the normal distribution: between it and its negative lie 95%


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How a model did on a task.

    `metric`, by which answers were judged; `digest`, of all that was asked, and how; `right`, of each document 1 or 0.
    """

    metric: str
    digest: str
    right: Sequence[int]

    def matches(self, other: Score) -> bool:
        """Tell whether another score is one on the very same documents, asked in the same tokens."""
        return (self.metric, self.digest, len(self.right)) == (other.metric, other.digest, len(other.right))

    @property
    def mean(self) -> float:
        """Return the share of documents whose answers are right."""
        return sum(self.right) / len(self.right)

    @property
    def error(self) -> float:
        """Return the standard error of that share, as lm-eval estimates it."""
        n = len(self.right)
        return math.sqrt(self.mean * (1 - self.mean) / (n - 1)) if n > 1 else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two models on one task: the engine's score, and the `other` that it is held against."""

    engine: Score
    other: Score

    @property
    def difference(self) -> float:
        """Return by how much the engine does better; less than 0 where it does worse."""
        return self.engine.mean - self.other.mean

    @property
    def alone(self) -> tuple[int, int]:
        """Return how many documents only the engine gets right, and how many only the other one does."""
        pairs = list(zip(self.engine.right, self.other.right, strict=True))
        return sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)

    @property
    def interval(self) -> tuple[float, float]:
        """Return the ends of the 95% confidence interval of the difference.

        Both have answered the same documents, so only those count that one alone gets right. The formula is the
        adjusted Wald interval for paired data of Bonett and Price, "Adjusted Wald confidence interval for a difference
        of binomial proportions based on paired data" (Journal of Educational and Behavioral Statistics 37, 2012): one
        document is added to either kind. It holds for few documents too, and is no point where there are none of a
        kind.
        """
        better, worse = (count + 1 for count in self.alone)
        n = len(self.engine.right) + 2
        middle = (better - worse) / n
        half = _QUANTILE * math.sqrt(((better + worse) / n - middle**2) / n)
        return max(middle - half, -1.0), min(middle + half, 1.0)

    def is_worse(self, bound: float) -> bool:
        """Tell whether the engine does worse by more than the bound: whether all of the interval says so."""
        return self.interval[1] < -bound


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """What came of a run.

    `asked`, the settings that another run must share, by which name a person knows them; `about`, what else was used;
    `bound`, by how much the engine may be worse; `against`, what it is held against, in words; `tasks`, by their names.
    """

    asked: Mapping[str, object]
    about: Mapping[str, object]
    bound: float
    against: str
    tasks: Mapping[str, Pair]

    @property
    def worse(self) -> list[str]:
        """Return the tasks on which the engine does worse than the bound allows."""
        return [name for name, pair in self.tasks.items() if pair.is_worse(self.bound)]

    def to_json(self) -> str:
        """Return all figures as JSON, to be read by `Earlier.read`."""
        tasks = {
            name: {**asdict(pair), "difference": pair.difference, "interval": pair.interval}
            for name, pair in self.tasks.items()
        }
        compared = {"worse": self.worse, "bound": self.bound, "against": self.against}
        return _dump(compared, self.asked, self.about, tasks)


def dump_engine(asked: Mapping[str, object], about: Mapping[str, object], engine: Mapping[str, Score]) -> str:
    """Return the engine's scores as JSON, as long as they are held against nothing: to be read by `Earlier.read`."""
    return _dump({}, asked, about, {name: {"engine": asdict(score)} for name, score in engine.items()})


def _dump(
    compared: Mapping[str, object],
    asked: Mapping[str, object],
    about: Mapping[str, object],
    tasks: Mapping[str, object],
) -> str:
    return json.dumps({**compared, "asked": asked, "about": about, "tasks": tasks}, indent=1) + "\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Earlier:
    """What the engine did in an earlier run, as its file has it: `asked`, `about`, and its scores by the tasks' names.

    Of `about`, `checkpoint`, `sglang`, `device`, `dtype` are texts, and `arguments` are a list of them.
    """

    path: Path
    asked: Mapping[str, object]
    about: Mapping[str, Any]
    scores: Mapping[str, Score]

    @classmethod
    def read(cls, path: Path) -> Earlier:
        """Read what `Results.to_json` or `dump_engine` has written.

        Raises AccuracyError if it is something else.
        """
        text = read_text(path, AccuracyError, hint=_WRITTEN)
        try:
            found: dict[str, Any] = parse_json(text)
            scores = {name: Score(**task["engine"]) for name, task in found["tasks"].items()}
            asked, about = dict(found["asked"]), dict(found["about"])
            texts = [*(about[name] for name in ("checkpoint", "sglang", "device", "dtype")), *about["arguments"]]
            good = all(isinstance(text, str) for text in texts)
            good = good and all(score.right and {*score.right} <= {0, 1} for score in scores.values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            good = False
        if not good:
            raise AccuracyError(f"{path} is not what an earlier run has written.", hint=_WRITTEN)
        return cls(path=path, asked=asked, about=about, scores=scores)

    def check(self, here: Mapping[str, object], tasks: Sequence[str]) -> None:
        """Raise AccuracyError if another run was asked other tasks, or in another way, or of something else.

        Parameters: `here`, what must be the same, of `asked` and of `about`.
        """
        there = {**self.about, **self.asked}
        problems = [
            f"{self.path}: {name} was {there.get(name)} there, and is {value} here."
            for name, value in here.items()
            if there.get(name) != value
        ]
        problems += [f"{self.path} has no task {name}." for name in tasks if name not in self.scores]
        if problems:
            raise AccuracyError(*problems, hint="Run both with the same tasks and settings.")

    def score(self, name: str, engine: Score) -> Score:
        """Return the score of a task, on the very documents that the engine was asked now.

        Raises AccuracyError if they are others.
        """
        there = self.scores[name]
        n, m = len(there.right), len(engine.right)
        what = f"{n} documents there and {m} here" if n != m else "other prompts, choices or answers, or other settings"
        if not there.matches(engine):
            raise AccuracyError(
                f"{self.path}: {name} has {what}.", hint="Run both with the same tasks, settings and tokenizer."
            )
        return there
