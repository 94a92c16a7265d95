"""The models under test with the answers of their reference models, and ways to run the engine on them."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from overlay_tools.engines import engine_config
from overlay_tools.engines.loopback import post as post_to
from overlay_tools.engines.loopback import post_request as request_to
from overlay_tools.engines.server import Server
from packaging.version import Version
from reference.cases import DATA, Case, cases
from reference.greedy import MAX_NEW_TOKENS, PROMPTS, Completion, Verdict, encode

from engine.forked import ForkedServer, running

SAMPLING = {"temperature": 0, "max_new_tokens": MAX_NEW_TOKENS, "ignore_eos": True}


# Of random weights: a name, the case, and changes to its config.json.
CHECKPOINTS: dict[str, tuple[str, Mapping[str, Any]]] = {
    f"{name}, {kind}" if kind else name: (name, changes)
    for name, case in cases().items()
    if case.weights is not None and case.vector is None
    for kind, changes in case.sets.items()
}
OURS = {name: case for name, case in cases().items() if case.ours}
SERVED = [f"{name}, {case.served}" for name, case in OURS.items() if case.served]  # over HTTP, of CHECKPOINTS
# A model of upstream's own; a project of a plugin may have none.
STOCK = next((name for name, case in cases().items() if not case.ours and not case.state), "")

HELD_OUT = encode((DATA / "heldout.txt").read_text(encoding="utf-8"))  # text that no checkpoint was trained on
CHUNK = 64  # the linear attention kernels' chunk: `extra_buffer` keeps states at its multiples


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A checkpoint, its case, and its reference model's greedy answers to PROMPTS."""

    path: Path
    case: Case
    answers: list[Completion]

    def answer_to(self, prompt: list[int]) -> Completion:
        """Find the answer to one of PROMPTS."""
        return self.answers[PROMPTS.index(prompt)]


CORES = sorted(os.sched_getaffinity(0))
RELEASE = Version(version("sglang"))
# Where sglang is upstream's own, and the overlay's models are in the plugin beside it: its package is its point's name.
POINTS = [p for p in entry_points(group="sglang.srt.plugins") if p.value == f"{p.name}.attach:attach"]
PLUGIN = next((p for p in POINTS if os.environ.get("SGLANG_PLUGINS", p.name) == p.name), None)
PACKAGE = PLUGIN.name if PLUGIN else "sglang.srt"


def ours(name: str) -> ModuleType:
    """Import a module of the overlay, named as below `sglang.srt`."""
    return importlib.import_module(f"{PACKAGE}.{name}")


OFFLINE = Path(__file__).with_name("offline_engine.py")


class OfflineEngine:
    """`sglang.Engine` in a process of its own, which the engine kills when it cannot go on."""

    def __init__(self, connection: Connection, log: Path) -> None:
        self._connection, self._log = connection, log

    def receive(self) -> Any:  # noqa: ANN401  # whatever the engine answers
        """Wait for what the process sends."""
        try:
            return self._connection.recv()
        except EOFError:
            pytest.fail(f"the engine ended:\n{self._log.read_text(encoding='utf-8', errors='replace')[-4000:]}")

    def generate(self, **options: object) -> Any:  # noqa: ANN401
        """Do what `Engine.generate` does."""
        self._connection.send(options)
        return self.receive()


@contextmanager
def running_engine(path: Path, log: Path, *, spawned: bool) -> Iterator[OfflineEngine]:
    """Run `sglang.Engine` on a checkpoint, its output in the file `log`.

    Parameters: `spawned`, whether it starts as it does for users; else it and its processes are forks.
    """
    arguments = {"model_path": str(path), "log_level": "error", **engine_config.ARGS}
    with Listener(family="AF_UNIX") as listener:
        command = [str(OFFLINE), str(listener.address), json.dumps(arguments)]
        with running(command, SPAWN if spawned else {}, log) as process:
            with listener.accept() as connection:
                engine = OfflineEngine(connection, log)
                assert engine.receive() == "ready"
                yield engine
            assert process.wait(60) == 0


def server(
    path: Path,
    log: Path,
    arguments: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
    changes: str = "",
) -> Server:
    """Describe a server of a checkpoint, its output in the file `log`, to be started by `with`.

    The code `changes` changes upstream's modules in its processes, by CHANGES.
    """
    flags = engine_config.flags({**engine_config.ARGS, **(arguments or {})})
    # Left to end by itself, a server takes 4 to 6 seconds, nearly all of them asleep.
    made = ForkedServer(Path(sys.executable), path, flags, env={**engine_config.ENV, **(env or {})}, log=log, grace=0)
    made.changes = changes
    return made


EXTRA_BUFFER = engine_config.extra_buffer(str(RELEASE))


def speculative(steps: int, *, state: bool = True) -> tuple[dict[str, object], dict[str, str]]:
    """Give the arguments and the environment for drafts of `steps` tokens by the head of a model, with state or not."""
    return engine_config.drafts(str(RELEASE), steps, state=state)


TWO_RANKS: tuple[dict[str, object], dict[str, str]] = (
    {"tp_size": 2},
    {"SGLANG_CPU_OMP_THREADS_BIND": f"{CORES[0]}|{CORES[-1]}"},
)

# A server or engine started with this starts its processes as it does for users: each imports everything anew. Once for
# each kind of model is enough; elsewhere all are forks of one that has (forked.py), and a start takes 2 s, not 15.
SPAWN = {"SPAWN": "1"}
_KINDS: dict[tuple[bool, ...], str] = {}
for _name, _case in OURS.items():
    _KINDS.setdefault((_case.decisions is not None, bool(_case.pictures), _case.vector is not None), _name)
AS_FOR_USERS = {*_KINDS.values()}  # the first case of each kind

# A start makes a million objects, nearly all to stay: looking for garbage among them takes an eighth of its time.
# A function that is put into CHANGES is given the module it is under, once that has been imported.
FIRST = """
import gc, importlib.abc, importlib.machinery, multiprocessing, os, sys

gc.set_threshold(100_000)
if "SPAWN" not in os.environ:
    choose = multiprocessing.set_start_method
    multiprocessing.set_start_method = lambda method, force=False: choose("fork", force)

CHANGES = {}

class Changer(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def and_then(module):
            execute(module)
            CHANGES[name](module)
        spec.loader.exec_module = and_then
        return spec

sys.meta_path.insert(0, Changer())
"""


def run_first(code: str, folder: Path) -> dict[str, str]:
    """Give an environment in which every Python process runs FIRST and `code`, kept in `folder`, before all else."""
    (folder / "sitecustomize.py").write_text(FIRST + code, encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def flush(server: Server) -> None:
    """Empty a server's caches, as soon as it is idle."""
    for _ in range(50):
        try:
            post(server.url, "/flush_cache")
        except urllib.error.HTTPError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("the server does not flush its cache")


def post_request(address: str, path: str, body: Mapping[str, object]) -> urllib.request.Request:
    """Make the request that sends JSON to a server."""
    return request_to(address + path, body)


def post(address: str, path: str, **body: object) -> Any:  # noqa: ANN401  # whatever JSON comes back
    """Send JSON to a server and read what it answers, JSON or nothing."""
    return post_to(address + path, body, timeout=300)


def generate(server: Server, prompts: Sequence[list[int]], tokens: int, **options: object) -> list[dict[str, Any]]:
    """Continue prompts greedily by so many tokens, sent at once; logprobs come with them."""
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    body = {"input_ids": list(prompts), "sampling_params": sampling, "return_logprob": True, **options}
    return list(post(server.url, "/generate", **body))


def tokens_of(output: Mapping[str, Any]) -> list[int]:
    """List the tokens of an output."""
    return [token for _, token, *_ in output["meta_info"]["output_token_logprobs"]]


def tokens_a_step(outputs: Sequence[Mapping[str, Any]]) -> float:
    """Give how many tokens came of each step of a server with drafts."""
    verified = sum(output["meta_info"]["spec_verify_ct"] for output in outputs)
    return float(sum(output["meta_info"]["completion_tokens"] for output in outputs) / verified)


def cached(outputs: Sequence[Mapping[str, Any]]) -> list[int]:
    """List how many tokens of each prompt came from the cache."""
    return [output["meta_info"]["cached_tokens"] for output in outputs]


def assert_answers(
    outputs: Sequence[Mapping[str, Any]],
    answers: Sequence[Completion | Verdict],
    prompt_from: int | None = None,
) -> None:
    """Assert that the engine's outputs have the reference model's tokens, and its logprobs within 1e-3.

    With `prompt_from`, the `logprob_start_len` of the requests, the prompts' logprobs as well. The prompt token there
    has none, by upstream's rule; those after it have.
    """
    assert len(outputs) == len(answers)
    for output, answer in zip(outputs, answers, strict=True):
        meta = output["meta_info"]
        length = meta["prompt_tokens"]
        assert [token for _, token, *_ in meta["output_token_logprobs"]] == answer.tokens, f"prompt of {length} tokens"
        got = [logprob for logprob, *_ in meta["output_token_logprobs"]]
        assert got == pytest.approx(answer.logprobs, abs=1e-3, rel=0), f"output logprobs, prompt of {length} tokens"
        if prompt_from is not None:
            assert len(meta["input_token_logprobs"]) == length - prompt_from
            got = [logprob for logprob, *_ in meta["input_token_logprobs"][1:]]
            wanted = answer.prompt_logprobs[prompt_from:]
            assert got == pytest.approx(wanted, abs=1e-3, rel=0), f"prompt logprobs, prompt of {length} tokens"
