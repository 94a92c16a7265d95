"""Measure an engine and a reference model in turns, and say how they compare."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overlay_tools.engines.loopback import HOST, without_proxy
from overlay_tools.engines.server import Server
from overlay_tools.errors import BenchError
from overlay_tools.subprocesses import end, run, start

_SCRIPT = Path(__file__).with_name("generate_script.py")
_PATIENCE = 10.0  # seconds that the reference model's process has to end


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What is asked for: so many requests `at_once`, each of `read` tokens, to which `written` ones are added."""

    at_once: int
    read: int
    written: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """How fast it was: seconds to the `first` token and `between` two of a request, medians; all tokens a `second`."""

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
        first=found["median_ttft_ms"] / 1000, between=found["median_itl_ms"] / 1000, second=found["output_throughput"]
    )


class Reference:
    """A reference model that generates, in a process of its own.

    Parameters: `job`, as of `compare.reference`; `said`, what the process has said of it.
    """

    def __init__(self, process: subprocess.Popen[bytes], said: Mapping[str, Any]) -> None:
        self._process, self.said = process, said

    def measure(self, load: Load, seed: int, vocabulary: int) -> Speed:
        """Let it generate a load, prompts of random tokens in one batch."""
        stream = random.Random(seed)
        prompts = [[stream.randrange(vocabulary) for _ in range(load.read)] for _ in range(load.at_once)]
        found = _ask(self._process, {"prompts": prompts, "tokens": load.written})
        return Speed(
            first=found["first"], between=found["between"], second=load.at_once * load.written / found["total"]
        )


@contextmanager
def open_reference(python: Path, job: Mapping[str, Any], env: Mapping[str, str], folder: Path) -> Iterator[Reference]:
    """Load a reference model, and end its process at the end of the block.

    Raises BenchError if there is none, or it cannot generate.
    """
    path, log = folder / "generate.json", folder / "generate.log"
    path.write_text(json.dumps(job), encoding="utf-8")
    with log.open("wb") as errors:
        process = start(
            [python, "-IW", "ignore", _SCRIPT, path],
            env={**os.environ, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    try:
        said = _line(process, log)
        if "problem" in said:
            raise BenchError(f"There is nothing to compare with: {said['problem']}.", hint="--alone does without.")
        yield Reference(process, said)
    finally:
        end(process, signal.SIGTERM, _PATIENCE)


def _ask(process: subprocess.Popen[bytes], asked: Mapping[str, Any]) -> dict[str, float]:
    assert process.stdin is not None
    process.stdin.write(json.dumps(asked).encode() + b"\n")
    process.stdin.flush()
    return _line(process, None)


def _line(process: subprocess.Popen[bytes], log: Path | None) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:] if log else []
        raise BenchError(f"The reference model's process ended: {' '.join(said) or 'it said nothing'}.")
    found: dict[str, Any] = json.loads(line)
    return found
