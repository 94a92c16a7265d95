"""Upstream's kernel in processes: one that measures, and some that compile, for that is what takes the time."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from overlay_tools import console
from overlay_tools.errors import TuneError
from overlay_tools.proving.script import Script, open_script
from overlay_tools.proving.tune.search import Progress
from overlay_tools.proving.tune.shape import KEYS, Shape
from overlay_tools.proving.tune.tiles import Tile

SCRIPT = Path(__file__).with_name("kernel_script.py")
_MOST_WORKERS = 8
_CONTEXT = 1 << 30  # bytes of GPU memory that a process takes besides weights
_SHARE = 2  # of the free GPU memory, one part in so many is for those that compile
# Nothing that is compiled by torch counts there, and none of them takes the cores of others.
_WORKER_ENV = {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """What upstream has for a shape.

    `release`, `triton`, versions; `device`, the GPU's name; `place`, the folder of all files of tiles, by its path in a
    wheel; `file`, which one upstream looks for there; `exact`, whether it has that, or takes one of another Triton
    (`taken`); `down`, whether it has one for the second half of the kernel alone; `defaults`, from which number of
    tokens on it has which tile; `shared_memory`, bytes that a block may have; `free`, bytes of GPU memory.
    """

    release: str
    triton: str
    device: str
    place: str
    file: str
    exact: bool
    taken: bool
    down: bool
    defaults: Sequence[tuple[int, Tile]]
    shared_memory: int
    free: int


class Processes:
    """Runs upstream's kernel, as `search.Bench` says.

    Parameters: `stack`, which ends the processes; `python`, of an engine's environment; `folder`, for their files.
    """

    def __init__(self, stack: ExitStack, python: Path, folder: Path, checkpoint: Path, flags: Sequence[str]) -> None:
        self._stack, self._python, self._folder = stack, python, folder
        job = {"checkpoint": str(checkpoint), "flags": list(flags), "keys": KEYS}
        self._script = self._open("measure", job, {})
        self.facts = self._script.said
        self._shape: dict[str, Any] = {}
        self._fitting = 1  # so many processes that compile, with weights of their own
        self._pool: ThreadPoolExecutor | None = None
        self._idle: queue.SimpleQueue[Script] = queue.SimpleQueue()

    def open(self, shape: Shape, own: Sequence[str]) -> Described:
        """Make weights of a shape, and return what upstream has for it, but for some files of ours."""
        self._shape = asdict(shape)
        said = self._ask(self._script, what="open", shape=self._shape, weighed=True, own=own, folder=str(self._folder))
        described = Described(**said)
        self._fitting = described.free // _SHARE // (shape.bytes + _CONTEXT)
        return described

    def compile(self, wanted: Sequence[tuple[Tile, Sequence[int]]], progress: Progress) -> None:
        """Compile tiles in several processes; one that cannot be compiled is found when it is measured."""
        if self._pool is None:
            self.time(1, [], 1)  # what upstream compiles besides is there then, for all of them
            number = max(1, min(_MOST_WORKERS, len(os.sched_getaffinity(0)) // 2, self._fitting, len(wanted)))
            self._pool = self._stack.enter_context(ThreadPoolExecutor(number))
            for script in self._pool.map(self._start_worker, range(number)):
                self._idle.put(script)
        for number, (each, problem) in enumerate(zip(wanted, self._pool.map(self._compile, wanted), strict=True)):
            progress(number, len(wanted))
            if problem:
                console.detail(f"{each[0]}: {problem}")

    def _compile(self, each: tuple[Tile, Sequence[int]]) -> str:
        script = self._idle.get()
        tile, tokens = each
        try:
            return str(script.ask(what="compile", tile=tile, tokens=tokens).get("problem", ""))
        finally:
            self._idle.put(script)  # also if it has ended: who takes it then must not wait for it

    def time(self, tokens: int, tiles: Sequence[Tile], rounds: int) -> tuple[list[float], list[list[float] | None]]:
        """Measure in turns; return microseconds in each round of upstream's default, and of each tile that runs."""
        own, *others = self._ask(self._script, what="time", tokens=tokens, tiles=tiles, rounds=rounds)["times"]
        for tile, times in zip(tiles, others, strict=True):
            if isinstance(times, str):
                console.detail(f"{tokens} tokens, {tile}: {times}")
        return own, [None if isinstance(times, str) else times for times in others]

    def _start_worker(self, number: int) -> Script:
        script = self._open(f"compile-{number}", {}, _WORKER_ENV)
        self._ask(script, what="open", shape=self._shape, weighed=False)
        return script

    def _open(self, name: str, job: Mapping[str, Any], env: Mapping[str, str]) -> Script:
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        # Where torch compiles something, it moves Triton's cache; what is compiled there would be compiled once more.
        env = {**env, "TRITON_CACHE_DIR": str(self._folder / "triton")}
        opened = open_script(self._python, SCRIPT, job, env=env, folder=folder, failed=TuneError)
        return self._stack.enter_context(opened)

    def _ask(self, script: Script, **asked: object) -> dict[str, Any]:
        said = script.ask(**asked)
        if "problem" in said:
            raise TuneError(f"{said['problem']}.", hint=f"See {script.log}.")
        return said


@contextmanager
def open_processes(python: Path, folder: Path, checkpoint: Path, flags: Sequence[str]) -> Iterator[Processes]:
    """Start the process that measures, and end all at the end of the block.

    Raises TuneError if upstream cannot read the checkpoint, or has no such kernel.
    """
    with ExitStack() as stack:
        yield Processes(stack, python, folder, checkpoint, flags)
