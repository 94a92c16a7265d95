"""How benchmarks take turns, and how they write what they found."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

ROUNDS = 7


def in_turns(runs: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Run the compared in turns and give what each returned in each round.

    Each round begins with another one. There is a round before the first that does not count.
    """
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            taken = runs[name]()
            if number:
                times[name].append(taken)
    return times


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Divide round by round: what drifts during a run weighs on both alike."""
    return [a / b for a, b in zip(above, below, strict=True)]


def figure(values: Sequence[float], form: str = ".3f") -> str:
    """Write a median and, after ±, half of what lies between the first and the third quarter."""
    low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):{form}} ± {(high - low) / 2:{form}}"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table in Markdown, each row as soon as it is there: a run that is cut short leaves what it has."""
    print(f"\n### {title}\n")
    for row in itertools.chain((head, ["---"] * len(head)), rows):
        print(f"| {' | '.join(row)} |", flush=True)
