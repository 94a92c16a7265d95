"""A comparison: servers are asked, the reference model judges, and where they part their modules are compared."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from overlay_tools import console
from overlay_tools.engines import engine_config
from overlay_tools.engines.server import Server
from overlay_tools.errors import CompareError
from overlay_tools.proving.compare.engine import (
    Answer,
    Vectors,
    ask_at_once,
    ask_for_each,
    ask_for_vectors,
    ask_one_by_one,
    ask_plainly,
    embed,
)
from overlay_tools.proving.compare.modules import Difference, first_difference
from overlay_tools.proving.compare.statistics import Row, compare, compare_vectors, runs_of
from overlay_tools.proving.reference import Described, Prompt, Reference

_CHUNK = 64  # the chunk of linear attention, the least that all releases take
_STEPS = 3  # tokens of a draft
CAPTURE = Path(__file__).with_name("capture_script.py")
_TOGETHER = ("in a batch", "with drafts")  # passes have rows of several prompts, or of drafts that are given up
_CACHED = ("from the cache", "further turn")  # the prompt itself has been asked before


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """The engine of a comparison.

    `python`, of its environment; `version`, of the release; `gpu`, whether it runs on one; `dtype`, in which it
    computes; `flags`, upstream's arguments that a person has given; `folder`, for its logs; `tokens`, of an answer;
    `timeout`, the seconds that it may take to come up.
    """

    python: Path
    version: str
    gpu: bool
    dtype: str
    flags: Sequence[str]
    folder: Path
    tokens: int
    timeout: float

    @contextmanager
    def serving(
        self,
        checkpoint: Path,
        way: str,
        arguments: Mapping[str, object] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Iterator[Server]:
        """Run a server on a checkpoint, and show that; `way` is what is asked of it."""
        usual, environment = engine_config.usual(checkpoint, gpu=self.gpu)
        server = Server(
            self.python,
            checkpoint,
            # Last comes what this way of computing is about: upstream takes the last of a flag that is there twice.
            [*engine_config.flags(usual), *self.flags, *engine_config.flags(arguments or {})],
            env={**environment, **(env or {})},
            log=self.folder / f"{way}.log",
            timeout=self.timeout,
            grace=0,
        )
        with console.step(f"Ask the engine: {way}"), server:
            yield server


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What came of a comparison.

    `checkpoint`, `release`, `device`, `dtype`: what was compared; `described`: with what; `rows`: a way of computing
    each; `difference`: where the two part, if they do and it was looked for; `not_located`: why it was not.
    """

    checkpoint: str
    release: str
    device: str
    dtype: str
    described: Described
    rows: list[Row]
    difference: Difference | None = None
    not_located: str = ""

    @property
    def same(self) -> bool:
        """Tell whether the engine serves what the reference model computes."""
        return not any(row.problems for row in self.rows)

    def to_json(self) -> str:
        """Return it as JSON, where what is no finite number is a text."""
        return json.dumps(_finite({"same": self.same, **asdict(self)}), indent=1, allow_nan=False) + "\n"


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def ask_engine(
    engine: Engine, checkpoint: Path, prompts: Sequence[Prompt], *, drafts: bool, state: bool
) -> dict[str, list[Answer]]:
    """Let the engine answer prompts greedily in every way: at once, from the cache, in chunks, with drafts.

    Parameters: `drafts`, whether the checkpoint has a head for them; `state`, as of `engine_config.drafts`.
    """
    answers: dict[str, list[Answer]] = {}
    with engine.serving(checkpoint, "as it is") as server:
        answers |= dict(ask_plainly(server, prompts, engine.tokens))
    with engine.serving(checkpoint, "in chunks", {"chunked_prefill_size": _CHUNK}) as server:
        answers["in chunks"] = ask_one_by_one(server, prompts, engine.tokens)
    if drafts:
        arguments, environment = engine_config.drafts(engine.version, _STEPS, state=state)
        with engine.serving(checkpoint, "with drafts", arguments, environment) as server:
            # Some releases give no distributions with drafts.
            answers["with drafts"] = ask_at_once(server, prompts, engine.tokens, distributions=False)
    return answers


def ask_engine_for_vectors(engine: Engine, checkpoint: Path, prompts: Sequence[Prompt]) -> dict[str, Vectors]:
    """Let the engine give the vectors of prompts in every way: alone, from the cache, at once, in chunks."""
    arguments = engine_config.vectors(engine.version)
    with engine.serving(checkpoint, "as it is", arguments) as server:
        vectors = dict(ask_for_vectors(server, prompts))
    with engine.serving(checkpoint, "in chunks", {**arguments, "chunked_prefill_size": _CHUNK}) as server:
        vectors["in chunks"] = ask_for_each(server, [[prompt] for prompt in prompts])
    return vectors


def judge_vectors(
    vectors: Mapping[str, Vectors],
    prompts: Sequence[Prompt],
    reference: Reference,
    dtype: str,
) -> list[Row]:
    """Compare all vectors with the reference model's, as `judge` does answers."""
    own = {}
    for kind in dict.fromkeys(["float32", dtype]):
        with console.step(f"Ask the reference model in {kind}"):
            own[kind] = reference.embed(prompts, kind)
            _require_numbers((value for vector in own[kind] for value in vector or []), kind)
    rounded = own[dtype] if dtype != "float32" else None
    return [compare_vectors(way, of_way, own["float32"], rounded) for way, of_way in vectors.items()]


def judge(answers: Mapping[str, Sequence[Answer]], reference: Reference, dtype: str) -> list[Row]:
    """Compare all answers with what the reference model says of them: a row for each way of computing.

    Parameters: `dtype`, in which the engine has computed.
    """
    runs = [run for of_way in answers.values() for run in runs_of(of_way)]
    verdicts = []
    for kind in dict.fromkeys(["float32", dtype]):
        with console.step(f"Ask the reference model in {kind}"):
            verdicts.append(reference.judge(runs, kind))
            _require_numbers((logprob for verdict in verdicts[-1] for logprob in verdict.logprobs), kind)
    rows, at = [], 0
    for way, of_way in answers.items():
        exact, *rounded = ([*judged[at : at + len(of_way)]] for judged in verdicts)
        rows.append(compare(way, of_way, exact, rounded[0] if rounded else None))
        at += len(of_way)
    return rows


def _require_numbers(values: Iterable[float], dtype: str) -> None:
    """Raise CompareError if a reference model gives what is no number: all would be as near to it, or nothing."""
    if not all(map(math.isfinite, values)):
        raise CompareError(
            f"The reference model gives numbers that are not finite, in {dtype}.",
            hint="See whether the checkpoint is whole, or compare in another dtype with `-- --dtype`.",
        )


def locate(
    engine: Engine,
    checkpoint: Path,
    reference: Reference,
    prompts: Sequence[Prompt],
    answers: Mapping[str, Sequence[Answer]],
    rows: Sequence[Row],
) -> Difference | str:
    """Find the first module that differs, in the first way of computing that does; or say why it cannot be found.

    Parameters: `answers`, none where the model gives vectors.
    """
    row = next(row for row in rows if row.problems and row.worst is not None)
    assert row.worst is not None
    if row.way in _TOGETHER:
        return f"The first way that differs is {row.way}, and modules are compared where a pass is of one prompt alone."
    asked, more = prompts[row.worst.prompt], 0
    if answers:
        answer = answers[row.way][row.worst.prompt]
        # Of an answer as a prompt, that is what is asked; else the prompt, to which the engine adds.
        asked = answer.prompt
        more = len(answer.tokens) - len(asked.tokens) or 1
    folder = engine.folder / "captured"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(CAPTURE, folder / "sitecustomize.py")
    env = {"PYTHONPATH": str(folder), "SGLANG_OVERLAY_CAPTURE": str(folder)}
    arguments: dict[str, object] = {"disable_cuda_graph": True}
    if row.way == "in chunks":
        arguments["chunked_prefill_size"] = _CHUNK
    with engine.serving(checkpoint, "each module", arguments, env) as server:
        if row.way in _CACHED:
            _ask_once(server, prompts[row.worst.prompt], engine.tokens if answers else 0)
        (folder / "on").touch()
        read = _ask_once(server, asked, more)
        (folder / "on").unlink()
    with console.step("Ask the reference model for each module"):
        return first_difference(reference.locate(read, folder, engine.dtype))


def _ask_once(server: Server, prompt: Prompt, tokens: int) -> Prompt:
    """Ask for the answer to a prompt, or its vector if there are to be no tokens; return what the engine has read."""
    if tokens:
        answer = ask_one_by_one(server, [prompt], tokens)[0]
        return prompt.then(answer.tokens[answer.chosen : -1])
    embed(server, [prompt])
    return prompt
