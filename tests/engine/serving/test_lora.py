"""An adapter (LoRA) changes a model's answers as merging it into the weights does, whatever others are loaded."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from overlay_tools.engines.server import Server
from overlay_tools.supervisor import end_with_parent
from reference.cases import cases, make_checkpoint
from reference.checkpoints import change_tensors
from reference.greedy import PROMPTS, Completion, all_answers
from safetensors.torch import load_file, save_file

from engine.harness import assert_answers, generate, post, server

RANK, ALPHA = 4, 8
SEEDS = {"first": 1, "second": 2}
ARGUMENTS: Mapping[str, object] = {"lora_backend": "torch_native", "max_loras_per_batch": 3, "max_lora_rank": RANK}
NAMES = [name for name, case in cases().items() if case.lora]
SOME = PROMPTS[-6:]

__test__ = bool(NAMES)  # without such a model there is nothing to test here

Adapter = dict[str, tuple[torch.Tensor, torch.Tensor]]


def draw(checkpoint: Path, modules: tuple[str, ...], seed: int) -> Adapter:
    """Draw an adapter of all modules with these names: each one's two factors, [rank, inputs] and [outputs, rank]."""
    random = torch.Generator().manual_seed(seed)
    shapes: dict[str, torch.Size] = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        shapes |= {name: tensor.shape for name, tensor in load_file(shard).items()}
    return {
        module: (
            torch.randn(RANK, shape[1], generator=random) * shape[1] ** -0.5,
            torch.randn(shape[0], RANK, generator=random) * 0.1,
        )
        for name, shape in sorted(shapes.items())
        if (module := name.removesuffix(".weight")).endswith(modules) and module.startswith("model.layers.")
    }


def write(folder: Path, adapter: Adapter, modules: tuple[str, ...]) -> Path:
    """Write an adapter as PEFT does."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(modules), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tensors = {
        f"base_model.model.{module}.lora_{'AB'[i]}.weight": factor
        for module, factors in adapter.items()
        for i, factor in enumerate(factors)
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def merge(checkpoint: Path, adapter: Adapter) -> None:
    """Add an adapter to a checkpoint's weights: each becomes W + alpha / rank * B A (arXiv:2106.09685, section 4.1)."""

    def merged(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for module, (a, b) in adapter.items():
            if (name := f"{module}.weight") in tensors:
                tensors[name] = tensors[name] + ALPHA / RANK * (b @ a)
        return tensors

    change_tensors(checkpoint, merged)


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A running server, the folders of its adapters, and what the reference model answers: by adapter, "" for none."""

    server: Server
    adapters: Mapping[str, Path]
    answers: Mapping[str, list[Completion]]

    def assert_right(self, *adapters: str) -> None:
        """Assert that all prompts, sent at once, each with each of these adapters, are answered as they should be."""
        asked = [(name, answer) for name in adapters for answer in self.answers[name]]
        outputs = generate(
            self.server,
            [answer.prompt for _, answer in asked],
            len(asked[0][1].tokens),
            lora_path=[name or None for name, _ in asked],
        )
        assert_answers(outputs, [answer for _, answer in asked])


@pytest.fixture(scope="module", params=NAMES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run one server after the other, with the first adapter loaded."""
    name, modules = request.param, tuple(cases()[request.param].lora)
    folder = tmp_path_factory.mktemp(name)
    make_checkpoint(name, folder / "model")
    checkpoints, adapters = {"": folder / "model"}, {}
    for label, seed in SEEDS.items():
        adapter = draw(folder / "model", modules, seed)
        adapters[label] = write(folder / label, adapter, modules)
        checkpoints[label] = folder / f"{label}, merged"
        make_checkpoint(name, checkpoints[label])
        merge(checkpoints[label], adapter)
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        answers = {label: pool.submit(all_answers, name, path, SOME).result() for label, path in checkpoints.items()}
    arguments = {**ARGUMENTS, "lora_paths": f"first={adapters['first']}"}
    with server(folder / "model", folder / "log", arguments) as running:
        yield Served(server=running, adapters=adapters, answers=answers)


def test_with_and_without_an_adapter_at_once(served: Served) -> None:
    assert served.answers["first"] != served.answers[""]
    served.assert_right("first", "")
    served.assert_right("", "first")  # from the cache, which tells them apart


def test_another_is_loaded_and_unloaded_while_it_serves(served: Served) -> None:
    post(served.server.url, "/load_lora_adapter", lora_name="second", lora_path=str(served.adapters["second"]))
    served.assert_right("second", "first", "")
    post(served.server.url, "/unload_lora_adapter", lora_name="second")
    served.assert_right("first", "")


def test_an_adapter_that_is_not_there_is_refused(served: Served) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        generate(served.server, SOME[:1], 1, lora_path="third")
    assert refused.value.code == 400
    served.assert_right("first", "")
