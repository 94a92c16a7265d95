"""An adapter (LoRA) changes a model's answers as merging it into the weights does, whatever others are loaded."""

from __future__ import annotations

import json
import re
import shutil
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from overlay_tools.engines.server import Server
from overlay_tools.errors import ServeError
from packaging.version import Version
from reference.adapters import ALPHA, RANK, draw, merge, write
from reference.cases import cases, make_checkpoint
from reference.greedy import PROMPTS, Run, Verdict, judge
from safetensors.torch import load_file, save_file

from engine.harness import RELEASE, assert_answers, generate, ours, post, server, tokens_of

SEEDS = {"first": 1, "second": 2}
ARGUMENTS: Mapping[str, object] = {"lora_backend": "torch_native", "max_loras_per_batch": 3, "max_lora_rank": RANK}
NAMES = [name for name, case in cases().items() if case.lora]
SOME = PROMPTS[-6:]
TOKENS = 24

__test__ = bool(NAMES)  # without such a model there is nothing to test here

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A running server, the folders of its adapters, and what judges answers: by adapter, "" for none."""

    server: Server
    adapters: Mapping[str, Path]
    judge: Callable[[str, list[Run]], list[Verdict]]

    def assert_right(self, *adapters: str) -> dict[str, list[list[int]]]:
        """Assert that all prompts, sent at once, each with each of these adapters, are answered as they should be.

        Gives the answers by adapter.
        """
        asked = [(name, prompt) for name in adapters for prompt in SOME]
        outputs = generate(
            self.server, [prompt for _, prompt in asked], TOKENS, lora_path=[name or None for name, _ in asked]
        )
        answers: dict[str, list[list[int]]] = {}
        for name in adapters:
            mine = [output for (other, _), output in zip(asked, outputs, strict=True) if other == name]
            answers[name] = [tokens_of(output) for output in mine]
            assert_answers(mine, self.judge(name, list(zip(SOME, answers[name], strict=True))))
        return answers


@pytest.fixture(scope="module", params=NAMES)
def served(
    request: pytest.FixtureRequest, reference_process: ProcessPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
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
    arguments = {**ARGUMENTS, "lora_paths": f"first={adapters['first']}"}
    with server(folder / "model", folder / "log", arguments) as running:
        yield Served(
            server=running,
            adapters=adapters,
            judge=lambda label, runs: reference_process.submit(judge, name, checkpoints[label], runs).result(),
        )


def test_with_and_without_an_adapter_at_once(served: Served) -> None:
    answers = served.assert_right("first", "")
    assert answers["first"] != answers[""]
    served.assert_right("", "first")  # from the cache, which tells them apart


def test_another_is_loaded_and_unloaded_while_it_serves(served: Served) -> None:
    post(served.server.url, "/load_lora_adapter", lora_name="second", lora_path=str(served.adapters["second"]))
    served.assert_right("second", "first", "")
    post(served.server.url, "/unload_lora_adapter", lora_name="second")
    served.assert_right("first", "")


TOO_MUCH: dict[str, Callable[[Tensors], str]] = {}
"""What is wrong with an adapter: changes its tensors and gives the name of what the server must say."""


def too_much(change: Callable[[Tensors], str]) -> Callable[[Tensors], str]:
    TOO_MUCH[change.__name__] = change
    return change


@too_much
def of_no_layer(tensors: Tensors) -> str:
    tensors["base_model.model.model.norm.lora_A.weight"] = torch.zeros(RANK, 128)
    return "base_model.model.model.norm.lora_A.weight: the engine has no place for it"


@too_much
def of_what_is_not_adapted(tensors: Tensors) -> str:
    tensors["base_model.model.model.layers.2.mlp.gate.lora_B.weight"] = torch.zeros(4, RANK)
    return "base_model.model.model.layers.2.mlp.gate.lora_B.weight: the engine has no place for it; of this layer"


@too_much
def of_an_expert(tensors: Tensors) -> str:
    """Upstream's kernels for experts are for GPUs alone."""
    name = "base_model.model.model.layers.2.mlp.experts.1.down_proj.lora_A.weight"
    tensors[name] = torch.zeros(RANK, 64)
    return f"{name}: the engine has no place for it; of this layer"


@too_much
def of_a_layer_of_another_model(tensors: Tensors) -> str:
    tensors["base_model.model.encoder.layers.2.attention.o_proj.lora_B.weight"] = torch.zeros(128, RANK)
    return "base_model.model.encoder.layers.2.attention.o_proj"


@too_much
def too_wide(tensors: Tensors) -> str:
    name = next(name for name in tensors if "o_proj.lora_B" in name)
    rows = len(tensors[name])
    tensors[name] = torch.zeros(rows // 2, RANK)
    return f"{name}: its shape is ({rows // 2}, {RANK}), and the engine has room for ({rows}, {RANK})"


@too_much
def half_of_a_pair(tensors: Tensors) -> str:
    name = next(name for name in tensors if "o_proj.lora_B" in name)
    del tensors[name]
    return "o_proj: the adapter has its factor A alone"


@too_much
def of_another_rank(tensors: Tensors) -> str:
    """Upstream has put the first factors of three projections into one by then."""
    module = next(name for name in tensors if "q_proj.lora_A" in name).partition("q_proj")[0]
    for name in [name for name in tensors if name.startswith((f"{module}q_", f"{module}k_", f"{module}v_"))]:
        tensors[name] = torch.cat((tensors[name],) * 2, int("lora_B" in name))
    columns = tensors[f"{module}q_proj.lora_A.weight"].shape[1]
    room = f"and the engine has room for ({3 * RANK}, {columns})"
    return f"{module}qkv_proj.lora_A.weight: its shape is ({6 * RANK}, {columns}), {room}"


@pytest.mark.parametrize("change", TOO_MUCH.values(), ids=TOO_MUCH)
def test_what_would_be_lost_of_an_adapter_is_named(
    served: Served, change: Callable[[Tensors], str], tmp_path: Path
) -> None:
    shutil.copytree(served.adapters["second"], tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    named = change(tensors)
    save_file(tensors, file)
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(served.server.url, "/load_lora_adapter", lora_name="third", lora_path=str(tmp_path / "adapter"))
    said = json.loads(refused.value.read().decode())
    assert named in json.dumps(said).replace("\\n", "\n")
    served.assert_right("first", "")


def test_factors_of_another_rank_beside_the_vocabulary_are_named() -> None:
    """Of the models here that are served with adapters, none has its vocabulary adapted."""
    adapters = ours("model_loader.checked_adapters")
    factors = {
        "embed_tokens.lora_embedding_A": torch.zeros(8, 256),
        "embed_tokens.lora_embedding_B": torch.zeros(32, RANK),
        "lm_head.lora_A.weight": torch.zeros(RANK, 32),
        "lm_head.lora_B.weight": torch.zeros(256, 8),
    }
    adapter = SimpleNamespace(config=SimpleNamespace(r=RANK), layers=[], embedding_layers=factors)
    manager = SimpleNamespace(
        loras={"id": adapter}, base_model=torch.nn.Module(), embed_tokens_module=object(), lm_head_module=object()
    )
    with pytest.raises(adapters.AdapterError) as refused:
        adapters._require_fit(manager, "id", "third")
    assert str(refused.value).splitlines()[1:] == [
        "  embed_tokens.lora_embedding_A: its shape is (8, 256), and adapter_config.json says that r is 4",
        "  lm_head.lora_B.weight: its shape is (256, 8), and adapter_config.json says that r is 4",
    ]


def from_files(served: Served, name: str, folder: Path) -> None:
    post(served.server.url, "/load_lora_adapter", lora_name=name, lora_path=str(folder))


def from_tensors(served: Served, name: str, folder: Path) -> None:
    from sglang.srt.utils import MultiprocessingSerializer

    torch.multiprocessing.set_sharing_strategy("file_system")  # the server is no child of this process
    tensors = MultiprocessingSerializer.serialize(load_file(folder / "adapter_model.safetensors"), output_str=True)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    sent = {"serialized_named_tensors": [tensors]} if Version("0.5.17") <= RELEASE else {"serialized_tensors": tensors}
    post(served.server.url, "/load_lora_adapter_from_tensors", lora_name=name, config_dict=config, **sent)


WAYS = [from_files, from_tensors] if Version("0.5.8") <= RELEASE else [from_files]

HARMLESS = {  # as PEFT 0.21 writes them
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": {"base_model_class": "Model", "parent_library": "library"},
    "base_model_name_or_path": "model",
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": {"rho": 2.0},
    "exclude_modules": ["lm_head"],
    "fan_in_fan_out": True,
    "inference_mode": True,
    "init_lora_weights": "gaussian",
    "layer_replication": None,
    "layers_pattern": "layers",
    "layers_to_transform": [0, 1],
    "loftq_config": {"loftq_bits": 4},
    "lora_bias": False,
    "lora_dropout": 0.05,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "rank_pattern": {},
    "revision": "main",
    "target_parameters": [],
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_dora": False,
    "use_qalora": False,
}
UNHEEDED = {
    "alora_invocation_tokens": [3],
    "alpha_pattern": {"q_proj": 16},
    "bias": "lora_only",
    "init_lora_weights": "pissa_niter_4",
    "layer_replication": [[0, 2], [1, 3]],
    "lora_bias": True,
    "modules_to_save": ["lm_head"],
    "peft_type": "ADALORA",
    "rank_pattern": {"q_proj": 8},
    "target_parameters": ["experts.down_proj"],
    "trainable_token_indices": [1],
    "use_a_later_idea": True,
    "use_dora": True,
    "use_qalora": True,
}


def with_config(served: Served, folder: Path, **changes: object) -> Path:
    """Copy the second adapter, with changes to its adapter_config.json."""
    shutil.copytree(served.adapters["second"], folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return folder


@pytest.mark.parametrize("load", WAYS)
def test_a_rank_stabilised_adapter_is_scaled_by_the_root_of_its_rank(
    served: Served, load: Callable[[Served, str, Path], None], tmp_path: Path
) -> None:
    alpha = ALPHA / RANK * RANK**0.5  # comes to the scale of the merged weights
    load(served, "second", with_config(served, tmp_path / "adapter", **HARMLESS, use_rslora=True, lora_alpha=alpha))
    served.assert_right("second", "first", "")
    post(served.server.url, "/unload_lora_adapter", lora_name="second")


@pytest.mark.parametrize("load", WAYS)
def test_what_an_adapters_config_says_and_the_engine_does_not_do_is_named(
    served: Served, load: Callable[[Served, str, Path], None], tmp_path: Path
) -> None:
    changed = with_config(served, tmp_path / "adapter", **UNHEEDED, r=float(RANK))
    with pytest.raises(urllib.error.HTTPError) as refused:
        load(served, "third", changed)
    said = json.loads(refused.value.read().decode())["error_message"]
    for key, value in UNHEEDED.items():
        assert f"adapter_config.json: {key} is {value!r}, which the engine does not do" in said
    assert "adapter_config.json: r must be a whole number from 1 on, not 4.0" in said
    served.assert_right("first", "")


def test_an_adapter_that_is_not_there_is_refused(served: Served) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        generate(served.server, SOME[:1], 1, lora_path="third")
    assert refused.value.code == 400
    served.assert_right("first", "")


STOCK = [name for name, case in cases().items() if not case.ours and case.state]


@pytest.mark.parametrize("name", STOCK)
def test_an_adapter_that_upstream_has_no_room_for_is_refused_when_the_server_starts(name: str, tmp_path: Path) -> None:
    """Upstream's Qwen3-Next forgets the gates beside its queries; its server ended when the adapter was first used."""
    make_checkpoint(name, tmp_path / "model")
    modules = ("q_proj", "k_proj", "v_proj")
    folder = write(tmp_path / "adapter", draw(tmp_path / "model", modules, 1), modules)
    arguments = {**ARGUMENTS, "lora_paths": f"first={folder}"}
    with pytest.raises(ServeError), server(tmp_path / "model", tmp_path / "log", arguments):
        pytest.fail("it serves")
    said = (tmp_path / "log").read_text(errors="replace")
    assert re.search(r"AdapterError: the adapter first does not fit the model, or the engine:", said)
    assert re.search(r"qkv_proj\.lora_B\.weight: its shape is \(384, 4\), and the engine has room for \(256, 4\)", said)
