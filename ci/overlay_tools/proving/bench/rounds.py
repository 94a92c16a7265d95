"""Measure an engine and a reference model in turns, and say how they compare."""

from __future__ import annotations

import json
import os
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overlay_tools.engines.loopback import HOST, without_proxy
from overlay_tools.engines.server import Server
from overlay_tools.errors import BenchError
from overlay_tools.proving.script import Script, open_script
from overlay_tools.subprocesses import run

_SCRIPT = Path(__file__).with_name("generate_script.py")


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What is asked for: so many requests `at_once`, each of `read` tokens, to which `written` ones are added."""

    at_once: int
    read: int
    written: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """How fast it was: seconds to the `first` token and `between` two of a request, medians; all tokens a `second`.

    `between` is the mean of a request: what comes between two tokens is not seen where their text comes in one piece.
    """

    first: float
    between: float
    second: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """The median of some rounds, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Sum up what the rounds gave."""
        return cls(median=statistics.median(values), least=min(values), most=max(values))


def measure_engine(server: Server, load: Load, seed: int, folder: Path) -> Speed:
    """Ask a server for a load with upstream's own serving benchmark.

    Raises BenchError if a request fails.
    """
    out = folder / "engine.jsonl"
    out.unlink(missing_ok=True)
    words = {
        "backend": "sglang",
        "host": HOST,
        "port": server.port,
        "model": server.model,
        "dataset-name": "random-ids",  # `random` would download texts
        "random-input-len": load.read,
        "random-output-len": load.written,
        "random-range-ratio": 1.0,
        "num-prompts": load.at_once,
        "max-concurrency": load.at_once,
        "seed": seed,
        "output-file": out,
    }
    flags = [text for name, value in words.items() for text in (f"--{name}", str(value))]
    flags += ["--tokenize-prompt", "--flush-cache", "--disable-tqdm"]
    command: list[str | Path] = [server.python, "-W", "ignore", "-m", "sglang.bench_serving", *flags]
    run(command, env=without_proxy({**os.environ, **server.env}))
    found = json.loads(out.read_text(encoding="utf-8").splitlines()[-1])
    if found["completed"] != load.at_once:
        raise BenchError(
            f"{load.at_once - found['completed']} of {load.at_once} requests failed.", hint=f"See {server.log}."
        )
    return Speed(
        first=found["median_ttft_ms"] / 1000, between=found["median_tpot_ms"] / 1000, second=found["output_throughput"]
    )


class Reference:
    """A reference model that generates, in a process of its own."""

    def __init__(self, script: Script) -> None:
        self._script, self.said = script, script.said

    def measure(self, load: Load, seed: int, vocabulary: int) -> Speed:
        """Let it generate a load, prompts of random tokens in one batch."""
        stream = random.Random(seed)
        prompts = [[stream.randrange(vocabulary) for _ in range(load.read)] for _ in range(load.at_once)]
        found = self._script.ask(prompts=prompts, tokens=load.written)
        return Speed(
            first=found["first"], between=found["between"], second=load.at_once * load.written / found["total"]
        )


@contextmanager
def open_reference(python: Path, job: Mapping[str, Any], env: Mapping[str, str], folder: Path) -> Iterator[Reference]:
    """Load a reference model, and end its process at the end of the block.

    Raises BenchError if there is none, or it cannot generate.
    """
    with open_script(python, _SCRIPT, job, env=env, folder=folder, failed=BenchError) as script:
        if "problem" in script.said:
            raise BenchError(
                f"There is nothing to compare with: {script.said['problem']}.", hint="--alone does without."
            )
        yield Reference(script)
