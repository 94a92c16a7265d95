"""On a GPU, with CUDA graphs and while requests run, weights are updated and adapters (LoRA) loaded.

A model's answers are then as near to its reference model on the new weights as they were to that on the old ones: by
the bounds of test_parity.py. A graph that had kept an old weight, or a part of one, would give other answers.
"""

from __future__ import annotations

import threading
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from engine.harness import EXTRA_BUFFER, HELD_OUT, flush, generate, post, tokens_of
from engine.updates import send, send_tensors
from overlay_tools.engines.server import Server
from reference.adapters import draw, merge, write
from reference.cases import cases, make_checkpoint
from reference.checkpoints import change_tensors
from safetensors.torch import load_file

from gpu.near import ReferenceModel
from gpu.servers import Wanted, servers
from gpu.test_parity import COMMON, DRAFTS, DRAFTS_ENVIRONMENT, POOL, Show

PROMPTS = [HELD_OUT[61 * i : 61 * i + 1 + 37 * i % 200] for i in range(64)]
CHANGED, ADAPTED = ("first", "second"), ("first adapter", "second adapter")
UPDATED = {"alone": (EXTRA_BUFFER, {}), "with drafts": (DRAFTS, DRAFTS_ENVIRONMENT)}
LORA: dict[str, object] = {"lora_backend": "triton", "max_loras_per_batch": 3, "max_lora_rank": 8}

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """Servers by name, the checkpoints whose answers they are to give, "" the one they started with, and adapters."""

    servers: dict[str, Server]
    checkpoints: dict[str, Path]
    adapters: dict[str, Path]
    reference: ReferenceModel

    def assert_near(self, outputs: list[dict[str, object]], label: str, show: Show, what: str) -> None:
        """Assert that the answers to PROMPTS are those of a checkpoint, as near as test_parity.py asks for."""
        reference = self.reference.of(self.checkpoints[label])
        # What is drawn at random makes answers less sure than training has made them: more of them are nearly a tie.
        reference.assert_near(PROMPTS, outputs, show, what, less_right=None if label == "" else 0.01)


@pytest.fixture(scope="module")
def served(reference: ReferenceModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("updates")
    modules = tuple(cases()[reference.name].lora)
    checkpoints, adapters = {"": reference.checkpoint}, {}
    for number, label in enumerate((*CHANGED, *ADAPTED)):
        make_checkpoint(reference.name, folder / label)
        checkpoints[label] = folder / label
        if label in CHANGED:
            change_tensors(folder / label, partial(disturbed, random=torch.Generator().manual_seed(number)))
        else:
            adapter = draw(reference.checkpoint, modules, number, size=0.03)
            adapters[label] = write(folder / f"{label}, apart", adapter, modules)
            merge(folder / label, adapter)
    wanted = {
        name: Wanted(reference.checkpoint, {**COMMON, **POOL, **arguments}, environment)
        for name, (arguments, environment) in UPDATED.items()
    }
    first = {"lora_paths": f"{ADAPTED[0]}={adapters[ADAPTED[0]]}"}
    wanted["adapters"] = Wanted(reference.checkpoint, {**COMMON, **POOL, **EXTRA_BUFFER, **LORA, **first})
    with servers(wanted, tmp_path_factory.mktemp("logs")) as running:
        yield Served(servers=running, checkpoints=checkpoints, adapters=adapters, reference=reference)


def disturbed(tensors: Tensors, random: torch.Generator) -> Tensors:
    """Change each weight by some hundredths of itself."""
    return {name: tensor * (1 + 0.05 * torch.randn(tensor.shape, generator=random)) for name, tensor in tensors.items()}


def weights(checkpoint: Path) -> list[tuple[str, torch.Tensor]]:
    """Read a checkpoint's weights onto the GPU."""
    shards = [load_file(shard) for shard in sorted(checkpoint.glob("*.safetensors"))]
    return [(name, tensor.to("cuda")) for shard in shards for name, tensor in shard.items()]


@contextmanager
def traffic(server: Server, **options: object) -> Iterator[list[int]]:
    """Let four clients ask a server all the time; give the number of tokens of each answer."""
    over, counts = threading.Event(), list[int]()

    def ask(client: int) -> None:
        number = client
        while not over.is_set():
            number += 4
            [output] = generate(server, [HELD_OUT[17 * number % 9000 :][: 20 + number % 90]], 40, **options)
            counts.append(len(tokens_of(output)))

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(ask, client) for client in range(4)]
        try:
            yield counts
        finally:
            over.set()
        for client in clients:
            client.result()


@pytest.mark.parametrize("name", UPDATED)
def test_updates_are_served_from_their_end_on(served: Served, name: str, show: Show) -> None:
    server, [first, second] = served.servers[name], CHANGED
    ways: dict[str, tuple[str, Callable[[Path], tuple[bool, str]]]] = {
        "from disk": (first, lambda folder: send(server.url, "/update_weights_from_disk", model_path=str(folder))),
        "from tensors": (second, lambda folder: send_tensors(server.url, 1, weights(folder))),
        "from one tensor": (
            "",
            lambda folder: send_tensors(server.url, 1, weights(folder), load_format="flattened_bucket"),
        ),
    }
    before = "", generate(server, PROMPTS, 32, logprob_start_len=0)
    served.assert_near(before[1], "", show, f"{name}, before any update")
    with traffic(server) as answered:
        for way, (label, update) in ways.items():
            taken, said = update(served.checkpoints[label])
            assert taken, said
            outputs = generate(server, PROMPTS, 32, logprob_start_len=0)
            served.assert_near(outputs, label, show, f"{name}, {way}, 4 other requests running")
            label_before, outputs_before = before
            with pytest.raises(AssertionError):  # the bounds tell both weights apart
                served.assert_near(
                    outputs_before, label, show, f"{name}, {way}: the answers of before, on {label_before!r}"
                )
            before = label, outputs
    assert len(answered) > 12
    assert {*answered} == {40}


@pytest.mark.parametrize("name", UPDATED)
def test_an_update_that_does_not_fit_changes_nothing(served: Served, name: str) -> None:
    server = served.servers[name]

    def one_by_one() -> list[list[object]]:
        flush(server)
        outputs = [generate(server, [prompt], 16)[0]["meta_info"] for prompt in PROMPTS[:8]]
        return [output["output_token_logprobs"] for output in outputs]

    before = one_by_one()
    cut, *others = weights(served.checkpoints[CHANGED[0]])
    taken, said = send_tensors(server.url, 1, [*others, (cut[0], cut[1].flatten()[:3])])
    assert not taken
    assert f"{cut[0]}: its shape is (3,)" in said
    assert one_by_one() == before


def test_adapters_are_loaded_and_unloaded_and_used_at_once(served: Served, show: Show) -> None:
    server, [first, second] = served.servers["adapters"], ADAPTED

    def check(*labels: str) -> None:
        """Send all prompts with each of some adapters at once."""
        asked = [(label, prompt) for label in labels for prompt in PROMPTS]
        of = [label or None for label, _ in asked]
        outputs = generate(server, [prompt for _, prompt in asked], 32, logprob_start_len=0, lora_path=of)
        for number, label in enumerate(labels):
            mine = outputs[number * len(PROMPTS) : (number + 1) * len(PROMPTS)]
            served.assert_near(mine, label, show, f"{label or 'no adapter'}, in a batch with {len(labels) - 1} others")

    with traffic(server, lora_path=first) as answered:
        check(first, "")
        post(server.url, "/load_lora_adapter", lora_name=second, lora_path=str(served.adapters[second]))
        check(second, "", first)
        post(server.url, "/unload_lora_adapter", lora_name=second)
        check("", first)
        with pytest.raises(urllib.error.HTTPError):  # upstream would load anew what it has unloaded, not this
            generate(server, PROMPTS[:1], 1, lora_path="third")
    assert len(answered) > 12
    assert {*answered} == {40}
