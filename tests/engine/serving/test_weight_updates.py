"""A running server takes an update of its weights whole, or refuses it and answers as before, to the last bit.

The storm sends updates of every kind while requests stream. `--updates N` sets how many; without it, there are a few:

    nox -s test-0.5.23 -- -k storm --updates 60
"""

from __future__ import annotations

import json
import random
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from overlay_tools.engines.loopback import open_directly
from overlay_tools.engines.server import Server
from packaging.version import Version
from reference.cases import Case, cases, make_checkpoint
from reference.checkpoints import change_tensors
from reference.greedy import judge
from safetensors.torch import load_file, save_file

from engine.harness import (
    HELD_OUT,
    RELEASE,
    TWO_RANKS,
    flush,
    generate,
    post_request,
    server,
    speculative,
    tokens_of,
)
from engine.updates import SESSIONS, send, send_tensors

Tensors = dict[str, torch.Tensor]

PROBES = [HELD_OUT[700 * i : 700 * i + length] for i, length in enumerate((5, 40, 65, 130))]


@dataclass(kw_only=True)
class Running:
    """A running server, the weights that it must have, and the requests that stream from it."""

    name: str
    case: Case
    kind: str
    server: Server
    ranks: int
    folder: Path
    weights: Tensors
    pool: ProcessPoolExecutor
    streaming: threading.Event = field(default_factory=threading.Event)
    stop: bool = False
    idle: list[threading.Event] = field(default_factory=list)
    streamed: Counter[str] = field(default_factory=Counter)

    def from_disk(self, checkpoint: Path) -> tuple[bool, str]:
        """Send a checkpoint's folder."""
        return send(self.server.url, "/update_weights_from_disk", model_path=str(checkpoint))

    def from_tensors(
        self, *of_ranks: Sequence[tuple[str, torch.Tensor]], load_format: str | None = None
    ) -> tuple[bool, str]:
        """Send tensors: the same to all ranks, or each rank's own."""
        return send_tensors(self.server.url, self.ranks, *of_ranks, load_format=load_format)

    def answers(self) -> list[tuple[list[int], list[float]]]:
        """Answer the probes with nothing else running: tokens, and their logprobs."""
        self.streaming.clear()
        for event in self.idle:
            assert event.wait(120)
        flush(self.server)
        outputs = [generate(self.server, [probe], 12)[0] for probe in PROBES]
        self.streaming.set()
        return [
            (tokens_of(output), [logprob for logprob, *_ in output["meta_info"]["output_token_logprobs"]])
            for output in outputs
        ]

    def assert_right(self, answers: list[tuple[list[int], list[float]]]) -> None:
        """Assert that answers are the reference model's on the weights that the server must have."""
        change_tensors(self.folder, lambda tensors: {name: self.weights[name].clone() for name in tensors})
        runs = [(probe, tokens) for probe, (tokens, _) in zip(PROBES, answers, strict=True)]
        decided = 0
        verdicts = self.pool.submit(judge, self.name, self.folder, runs).result()
        for (tokens, logprobs), verdict in zip(answers, verdicts, strict=True):
            if verdict.router_margin > 2e-6:
                assert logprobs == pytest.approx(verdict.logprobs, abs=1e-3, rel=0)
                if verdict.margin > 1e-3:
                    decided += 1
                    assert tokens == verdict.tokens
        assert decided >= 2

    @property
    def alive(self) -> bool:
        """Tell whether the server has not ended."""
        return self.server.process.poll() is None


def _stream(running: Running, index: int, idle: threading.Event) -> None:
    """Stream one request after another until the storm is over."""
    stream = random.Random(index)
    while not running.stop:
        if not running.streaming.is_set():
            idle.set()
            running.streaming.wait(0.2)
            continue
        idle.clear()
        start = stream.randrange(9000)
        body = {
            "input_ids": HELD_OUT[start : start + stream.randrange(8, 120)],
            "sampling_params": {
                "temperature": 0 if running.kind == "with drafts" else 0.7,  # on a CPU, drafts are not sampled from
                "max_new_tokens": stream.randrange(8, 24),
                "ignore_eos": True,
            },
            "stream": True,
        }
        try:
            with open_directly(post_request(running.server.url, "/generate", body), timeout=300) as events:
                last = [line for line in events if line.startswith(b"data: {")][-1]
            running.streamed[json.loads(last.removeprefix(b"data: "))["meta_info"]["finish_reason"]["type"]] += 1
        except Exception as error:
            running.streamed[f"{type(error).__name__}: {error}"] += 1
            time.sleep(0.2)
    idle.set()


# Arguments, environment, ranks.
KINDS: dict[str, tuple[dict[str, object], dict[str, str], int]] = {
    "alone": ({}, {}, 1),
    "with drafts": (*speculative(2), 1),
    "on two ranks": (*TWO_RANKS, 2),
}


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, reference_process: ProcessPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """Run a server of a case, as one of KINDS says."""
    name, kind = request.param
    case = cases()[name]
    folder = tmp_path_factory.mktemp("served")
    make_checkpoint(name, folder)
    weights: Tensors = {}
    for shard in sorted(folder.glob("*.safetensors")):
        weights |= load_file(shard)
    arguments, environment, ranks = KINDS[kind]
    arguments = {**({"max_mamba_cache_size": 128} if case.state else {}), **arguments}
    with server(folder, tmp_path_factory.mktemp("log") / "log", arguments, environment) as started:
        copy = tmp_path_factory.mktemp("expected")
        make_checkpoint(name, copy)
        yield Running(
            name=name,
            case=case,
            kind=kind,
            server=started,
            ranks=ranks,
            folder=copy,
            weights=weights,
            pool=reference_process,
        )


def on(*kinds: str) -> pytest.MarkDecorator:
    """Run a test on servers of these kinds, of each case whose weights are updated; two of them are no draft's."""
    servers = [
        (name, kind)
        for kind in kinds
        for name, case in cases().items()
        if len(case.updates) > (2 if kind == "with drafts" else 1)
    ]
    return pytest.mark.parametrize("running", servers, indirect=True, scope="module", ids=", ".join)


class Updates:
    """Makes updates: each sends one, and gives what came of it, what had to come, and the weights that were good."""

    def __init__(self, running: Running, folder: Path) -> None:
        self.running, self.folder = running, folder
        self.norm, self.other, *self.draft = running.case.updates
        self.random = torch.Generator().manual_seed(5)

    @property
    def in_second(self) -> set[str]:
        """Name the tensors that are in the second shard: half of all, and what is not of the model."""
        known = sorted(self.running.weights)
        return {*known[: len(known) // 2], *self.running.case.updates, "model.more"}

    def named(self, text: str) -> str:
        """Put the names and shapes of this case's tensors into what is to be said."""
        shape = {name: tuple(self.running.weights[name].shape) for name in self.running.case.updates}
        draft = self.draft[0] if self.draft else ""
        names = {"NORM": self.norm, "DRAFT": draft}
        shapes = {f"SHAPE_OF_{key}": str(shape.get(name)) for key, name in names.items()}
        for key, value in {**shapes, **names}.items():
            text = text.replace(key, value)
        return text

    def changed(self, names: Sequence[str] | None = None, dtype: torch.dtype = torch.float32) -> Tensors:
        """Change weights a little: all, or those that are named."""
        return {
            name: (tensor * (1 + 0.05 * torch.randn(tensor.shape, generator=self.random))).to(dtype)
            for name, tensor in self.running.weights.items()
            if names is None or name in names
        }

    def some(self) -> list[str]:
        """Choose a part of the weights, in which the two of the case are the last."""
        names = sorted(self.running.weights)
        chosen = [name for name in names if torch.rand(1, generator=self.random) < 0.2]
        return [name for name in chosen if name not in (self.norm, self.other)] + [self.other, self.norm]

    def on_disk(self, tensors: Tensors, change: Callable[[Path], None] = lambda folder: None) -> tuple[bool, str]:
        """Send a checkpoint of these tensors, in two shards, after `change` has been at its folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        make_checkpoint(self.running.name, self.folder)
        for file in self.folder.glob("*.safetensors"):
            file.unlink()
        for shard, of_second in ((FIRST, False), (SECOND, True)):
            part = {name: tensor for name, tensor in tensors.items() if (name in self.in_second) == of_second}
            save_file(part, self.folder / shard, metadata={"format": "pt"})
        change_tensors(self.folder, dict)
        change(self.folder)
        return self.running.from_disk(self.folder)

    def in_list(
        self, tensors: Mapping[str, torch.Tensor] | Sequence[tuple[str, torch.Tensor]], load_format: str | None = None
    ) -> tuple[bool, str]:
        """Send tensors."""
        named = tensors.items() if isinstance(tensors, Mapping) else tensors
        return self.running.from_tensors([(n, t.contiguous()) for n, t in named], load_format=load_format)


def _overwrite(name: str, content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content((folder / name).read_bytes()))

    return change


def _config(**changes: object) -> Callable[[Path], None]:
    """Change keys of config.json, of its text model where it has one."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config.get("text_config", config).update(changes)
        (folder / "config.json").write_text(json.dumps(config))

    return change


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
MISSHAPEN = torch.ones(7)

# An update: how it is sent, and the message that it is refused with; or none, and the weights are taken.
GOOD: dict[str, tuple[Callable[[Updates, Tensors], tuple[bool, str]], torch.dtype, bool]] = {  # sends, dtype, whole
    "disk": (lambda u, t: u.on_disk(t), torch.float32, True),
    "disk, bfloat16": (
        lambda u, t: u.on_disk(t, _config(use_cache=False, transformers_version="1.0", dtype="bfloat16")),
        torch.bfloat16,
        True,
    ),
    "disk, weights alone": (
        lambda u, t: u.on_disk(t, lambda folder: (folder / "config.json").unlink()),
        torch.float32,
        True,
    ),
    "tensors, all": (lambda u, t: u.in_list(t), torch.float32, True),
    "tensors, some": (lambda u, t: u.in_list(t), torch.float32, False),
    "tensors, some, bfloat16": (lambda u, t: u.in_list(t), torch.bfloat16, False),
    "bucket": (lambda u, t: u.in_list(t, "flattened_bucket"), torch.float32, False),
}
BAD: dict[str, tuple[Callable[[Updates, Tensors], tuple[bool, str]], str]] = {
    "disk, missing": (lambda u, t: u.on_disk(_without(t, u.norm)), "NORM: missing"),
    "disk, misshapen": (
        lambda u, t: u.on_disk(t | {u.norm: MISSHAPEN}),
        f"NORM ({SECOND}): its shape is (7,), not SHAPE_OF_NORM",
    ),
    "disk, unknown": (lambda u, t: u.on_disk(t | {"model.more": MISSHAPEN}), "model.more (model-00002-of-00002"),
    "disk, dtype": (
        lambda u, t: u.on_disk(t | {u.norm: t[u.norm].long()}),
        f"NORM ({SECOND}): its dtype is int64, not",
    ),
    "disk, unreadable": (
        lambda u, t: u.on_disk(t, _overwrite(SECOND, lambda content: b"<html>not here</html>")),
        f"{SECOND} (21 bytes) is damaged or cut short",
    ),
    "disk, cut short": (
        lambda u, t: u.on_disk(t, _overwrite(SECOND, lambda content: content[:-9])),
        "bytes) is damaged or cut short",
    ),
    "disk, another configuration": (
        lambda u, t: u.on_disk(t, _config(rms_norm_eps=0.5)),
        "rms_norm_eps is 0.5, and the model is served with 1e-06",
    ),
    "disk, no shard": (lambda u, t: u.on_disk(t, lambda folder: (folder / SECOND).unlink()), ""),
    "disk, nothing": (lambda u, t: u.running.from_disk(u.folder / "none"), "none: "),
    "tensors, misshapen": (
        lambda u, t: u.in_list(_last(t, u.norm, MISSHAPEN)),
        "NORM: its shape is (7,), not SHAPE_OF_NORM",
    ),
    "tensors, unknown": (
        lambda u, t: u.in_list(t | {"model.more": MISSHAPEN}),
        "model.more: not a tensor of this model",
    ),
    "tensors, dtype": (lambda u, t: u.in_list(_last(t, u.norm, t[u.norm].long())), "NORM: its dtype is int64, not"),
    "tensors, twice": (lambda u, t: u.in_list([*t.items(), (u.norm, t[u.norm])]), "NORM: there 2 times"),
    "tensors, no such format": (lambda u, t: u.in_list(t, "no-such-format"), "no-such-format"),
    "direct, unknown": (
        lambda u, t: u.in_list(t | {"model.more": MISSHAPEN}, "direct"),
        "model.more: not a tensor of this model",
    ),
    "bucket, misshapen": (
        lambda u, t: u.in_list(_last(t, u.norm, MISSHAPEN), "flattened_bucket"),
        "NORM: its shape is (7,), not SHAPE_OF_NORM",
    ),
    "bucket, unknown": (
        lambda u, t: u.in_list(t | {"model.more": MISSHAPEN}, "flattened_bucket"),
        "model.more: not a tensor of this model",
    ),
    "tensors, misshapen draft": (
        lambda u, t: u.in_list(_last(t, u.draft[0], MISSHAPEN)),
        "DRAFT: its shape is (7,), not SHAPE_OF_DRAFT",
    ),
    "disk, misshapen draft": (
        lambda u, t: u.on_disk(t | {u.draft[0]: MISSHAPEN}),
        "DRAFT (model-0000",
    ),
    "disk, without a draft": (
        lambda u, t: u.on_disk({name: tensor for name, tensor in t.items() if not name.startswith("mtp.")}),
        "the checkpoint has no draft (mtp.* tensors)",
    ),
}


def concerns_the_draft(name: str) -> bool:
    """Tell whether this release loads such an update into the draft too: until 0.5.10, none that comes from disk."""
    return "tensors" in name or Version("0.5.11") <= RELEASE


def _without(tensors: Tensors, name: str) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if key != name}


def _last(tensors: Tensors, name: str, tensor: torch.Tensor) -> Tensors:
    return _without(tensors, name) | {name: tensor}


@on("alone", "with drafts")
def test_storm(
    running: Running, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drafts = running.kind == "with drafts"
    kinds = [name for name in (*GOOD, *BAD) if "draft" not in name or (drafts and concerns_the_draft(name))]
    usual = [name for name in kinds if name in GOOD or "draft" in name] if drafts else kinds
    count = request.config.getoption("--updates")
    kinds, count = (kinds, count) if count else (usual, len(usual))
    order: list[str] = []
    shuffle = random.Random(3)
    while len(order) < count:
        order += shuffle.sample(kinds, len(kinds))
    threads = [ThreadPoolExecutor(max_workers=1) for _ in range(8)]
    running.idle = [threading.Event() for _ in threads]
    for index, thread in enumerate(threads):
        thread.submit(_stream, running, index, running.idle[index])
    updates = Updates(running, tmp_path / "update")
    seconds, outcome = 0.0, Counter[str]()
    try:
        before = running.answers()
        running.assert_right(before)
        for name in order[:count]:
            time.sleep(0.3)  # so that requests stream when it comes
            started = time.monotonic()
            if name in GOOD:
                sends, dtype, whole = GOOD[name]
                tensors = updates.changed(None if whole else updates.some(), dtype)
                success, message = sends(updates, tensors)
                assert success, f"{name}: {message}"
                running.weights |= {key: tensor.float() for key, tensor in tensors.items()}
            else:
                sends, reason = BAD[name]
                whole = name.startswith("disk")
                success, message = sends(updates, updates.changed(None if whole else updates.some()))
                assert not success, name
                assert updates.named(reason) in message, f"{name}: {message}"
            seconds += time.monotonic() - started
            outcome["taken" if success else "refused"] += 1
            assert running.alive, f"the server ended after {name}"
            after = running.answers()
            if name in GOOD:
                assert after != before, name
                running.assert_right(after)
            else:
                assert after == before, name
            before = after
    finally:
        running.stop = True
        for thread in threads:
            thread.shutdown()
    with capsys.disabled():
        print(
            f"\nsglang {RELEASE}, {count} updates {running.name} {running.kind}: {dict(outcome)},"
            f" {seconds / count:.2f} s each, requests beside them: {dict(running.streamed)}"
        )
    assert running.streamed.keys() == {"length"}
    assert running.streamed["length"] >= count


@pytest.mark.alone
@on("on two ranks")
def test_both_ranks_take_an_update_or_none(running: Running, tmp_path: Path) -> None:
    updates = Updates(running, tmp_path / "update")
    before = running.answers()
    running.assert_right(before)
    good = list(updates.changed([updates.other, updates.norm]).items())
    bad = [good[0], (updates.norm, MISSHAPEN)]
    for of_ranks in ((good, bad), (bad, good)):
        success, message = running.from_tensors(*of_ranks)
        assert (success, updates.named("NORM: its shape is (7,), not SHAPE_OF_NORM") in message) == (False, True), (
            message
        )
        assert running.answers() == before
    success, message = updates.on_disk(_without(running.weights, updates.norm))
    assert (success, f"{updates.norm}: missing" in message) == (False, True), message
    assert running.answers() == before
    assert running.from_tensors(good)[0]
    running.weights |= dict(good)
    running.assert_right(running.answers())


@pytest.mark.alone
@on("on two ranks")
def test_weights_that_a_trainer_broadcasts(running: Running) -> None:
    updates = Updates(running, Path())
    before = running.answers()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"master_address": "127.0.0.1", "master_port": port, "rank_offset": 1, "world_size": 3, "backend": "gloo"}
    with ThreadPoolExecutor(max_workers=1) as pool:
        joined = pool.submit(send, running.server.url, "/init_weights_update_group", group_name="trainer", **group)
        from sglang.srt.utils import init_custom_process_group

        trainer = init_custom_process_group(
            backend="gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=3, rank=0, group_name="trainer"
        )
        assert joined.result()[0]

        def broadcast(tensors: Tensors) -> tuple[bool, str]:
            body: dict[str, object] = {
                "names": list(tensors),
                "dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()],
                "shapes": [list(tensor.shape) for tensor in tensors.values()],
                "group_name": "trainer",
            }
            if SESSIONS:
                assert send(running.server.url, "/begin_weight_update")[0]
            answer = pool.submit(send, running.server.url, "/update_weights_from_distributed", **body)
            for tensor in tensors.values():
                torch.distributed.broadcast(tensor.contiguous(), src=0, group=trainer)
            answered = answer.result()
            if SESSIONS:
                assert send(running.server.url, "/end_weight_update")[0]
            return answered

        good = updates.changed([updates.other, updates.norm])
        for bad, reason in (
            (_last(good, updates.norm, MISSHAPEN), updates.named("NORM: its shape is (7,), not SHAPE_OF_NORM")),
            (good | {"model.more": MISSHAPEN}, "model.more: not a tensor of this model"),
        ):
            success, message = broadcast(bad)
            assert (success, reason in message, "nothing was changed" in message) == (False, True, True), message
            assert running.answers() == before
        assert broadcast(good)[0]
    running.weights |= good
    running.assert_right(running.answers())
    torch.distributed.destroy_process_group(trainer)
