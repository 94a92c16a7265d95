"""What Qwen3-Next-Ext says to a bad configuration, and which tensors it asks of a checkpoint."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.harness import ours
from safetensors import safe_open
from torch import nn

from models.qwen3_next_ext.case import TRAINED

Qwen3NextExtConfig = ours("configs.qwen3_next_ext").Qwen3NextExtConfig
Qwen3NextExtForCausalLM = ours("models.qwen3_next_ext").Qwen3NextExtForCausalLM
Qwen3NextExtensions = ours("models.qwen3_next_ext").Qwen3NextExtensions
Qwen3NextExtForCausalLMMTP = ours("models.qwen3_next_ext_mtp").Qwen3NextExtForCausalLMMTP
strict_loading = ours("model_loader.strict_loading")
load_checked = ours("model_loader.checked_updates").load_checked

SIGMOID = {"scoring_func": "sigmoid", "num_experts": 8, "num_experts_per_tok": 2}
ROPE = {
    "rope_theta": 1e7,
    "partial_rotary_factor": 0.25,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
        "attention_factor": 1.5,
    },
}
LAYERS = ["linear_attention", "full_attention"]


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"layer_types": ["linear_attention"]}, "layer_types must list 2 layers"),
        ({"layer_types": "linear_attention"}, "layer_types must list 2 layers"),
        ({"layer_types": ["linear_attention", "sliding_attention"]}, "layer_types has 'sliding_attention'"),
        ({"layer_types": ["linear_attention", None]}, "layer_types has None"),
        ({"layer_types": ["linear_attention"] * 2}, "layer_types must have both"),
        ({"layer_types": ["nope_attention"] * 2}, "layer_types must have both"),
        (
            {"layer_types": ["linear_attention", "nope_attention"], "nope_layers": [0]},
            "nope_layers has 0, and layer_ty",
        ),
        ({"nope_layers": [0]}, "nope_layers has 0, and layer_types has no full_attention there"),
        ({"nope_layers": [2]}, "nope_layers has 2, and layer_types has no full_attention there"),
        ({"nope_layers": 1}, "nope_layers must list layers"),
        ({"nope_layers": [1, 1]}, "nope_layers must list layers"),
        ({"rope_thta": 1e7}, "rope_thta is not a key of this model; did you mean rope_theta"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings must be false, not true"),
        ({"num_experts": "8"}, "num_experts must be a whole number from 1 on, not '8'"),
        ({"layer_types": None, "full_attention_interval": 0}, "full_attention_interval must be"),
        ({"layer_types": None, "full_attention_interval": "2"}, "full_attention_interval must be"),
        ({"scoring_func": "tanh"}, "scoring_func must be"),
        ({"scoring_func": None}, "scoring_func must not be null"),
        ({"n_group": 2}, "n_group and topk_group have no effect"),
        ({**SIGMOID, "norm_topk_prob": False}, "norm_topk_prob must be true"),
        ({**SIGMOID, "n_group": 0}, "n_group must divide num_experts"),
        ({**SIGMOID, "n_group": 3}, "n_group must divide num_experts"),
        ({**SIGMOID, "n_group": 8}, "n_group must divide num_experts"),
        ({**SIGMOID, "n_group": 2.0}, "n_group must divide num_experts"),
        ({**SIGMOID, "n_group": True}, "n_group must divide num_experts"),
        ({**SIGMOID, "n_group": 4, "topk_group": 5}, "topk_group must be 1 to n_group"),
        ({**SIGMOID, "n_group": 4, "topk_group": 0}, "topk_group must be 1 to n_group"),
        ({**SIGMOID, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 1}, "topk_group 1 leaves 2 experts"),
        ({"head_adapter_rank": -1}, "head_adapter_rank must be 0 to"),
        ({"head_adapter_rank": 65}, "head_adapter_rank must be 0 to"),
        ({"head_adapter_rank": 8.0}, "head_adapter_rank must be 0 to"),
    ],
)
def test_bad_configuration_names_the_key(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^config\.json: {named}"):
        Qwen3NextExtConfig(**{"num_hidden_layers": 2, "hidden_size": 64, "layer_types": LAYERS, **keys})


def test_layers_of_each_kind() -> None:
    types = ["full_attention", "linear_attention"] * 2
    old = ["nope_attention", *types[1:]]  # as files of revisions 1 and 2 say it
    for keys in ({"layer_types": types, "nope_layers": [0]}, {"layer_types": old}):
        config = Qwen3NextExtConfig(num_hidden_layers=4, **keys)
        assert config.layers_block_type == ["nope_attention", "linear_attention", "attention", "linear_attention"]
        assert config.full_attention_layer_ids == [0, 2]  # these have a KV cache
        assert config.linear_layer_ids == [1, 3]  # and these a state
        assert (config.layer_types, config.nope_layers) == (types, [0])
    config = Qwen3NextExtConfig(num_hidden_layers=8, nope_layers=[7])
    assert config.layers_block_type[3::4] == ["attention", "nope_attention"]
    assert Qwen3NextExtConfig(num_hidden_layers=8).full_attention_layer_ids == [3, 7]


def test_saved_it_has_its_own_name_and_is_the_same_when_read_back(tmp_path: Path) -> None:
    config = Qwen3NextExtConfig(**{**json.loads((TRAINED / "config.json").read_text(encoding="utf-8")), **ROPE})
    config.context_len = 4096  # as upstream notes it there
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert saved["architectures"] == ["Qwen3NextExtForCausalLM"]
    assert saved["model_type"] == "qwen3_next_ext"
    assert not {"overlay_architecture", "checkpoint_sizes", "context_len"} & saved.keys()
    assert set(saved["layer_types"]) == {"linear_attention", "full_attention"}
    assert {key: saved[key] for key in ROPE} == ROPE
    again = Qwen3NextExtConfig.from_pretrained(tmp_path)
    for key in ("layer_types", "scoring_func", "n_group", "head_adapter_rank", "logit_softcap", "layers_block_type"):
        assert getattr(again, key) == getattr(config, key)
    assert again.rope_scaling == config.rope_scaling
    assert again.architectures == config.architectures == ["Qwen3NextForCausalLM"]
    assert again.overlay_architecture == config.overlay_architecture == "Qwen3NextExtForCausalLM"


def test_expected_tensors_are_those_of_the_trained_checkpoint() -> None:
    config = Qwen3NextExtConfig.from_pretrained(TRAINED)
    found: dict[str, tuple[int, ...]] = {}
    for shard in sorted(TRAINED.glob("*.safetensors")):
        with safe_open(shard, "pt") as tensors:
            found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    ours = (cls.checkpoint_shapes(config) for cls in (Qwen3NextExtForCausalLM, Qwen3NextExtForCausalLMMTP))
    assert {name: shape for shapes in ours for name, shape in shapes.items()} == found
    index = json.loads((TRAINED / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["weight_map"].keys() == found.keys()


class Upstreams(nn.Module):  # type: ignore[misc]
    """Stands for a model as upstream builds it: a layer and a head."""

    def __init__(self, config: object) -> None:
        super().__init__()
        self.config, self.quant_config = config, None
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([nn.Linear(4, 4, bias=False)])
        self.lm_head = nn.Linear(4, 8, bias=False)


class Scaled(Qwen3NextExtensions, Upstreams):  # type: ignore[misc,valid-type]
    """Derives from the extensions: a factor before the head in place of the adapter, and a tensor in each layer."""

    def __init__(self, config: object) -> None:
        super().__init__(config)
        self.extend_checked(config, ("mtp.",))

    def extend(self, config: object) -> None:
        self.scale = nn.Parameter(torch.ones(4))
        self.model.layers[0].bias = nn.Parameter(torch.zeros(4))

    @classmethod
    def checkpoint_shapes(cls, config: object) -> dict[str, tuple[int, ...]]:
        return {"model.layers.0.weight": (4, 4), "model.layers.0.bias": (4,), "lm_head.weight": (8, 4)}


def test_what_a_derived_model_adds_is_expected_of_its_checkpoint() -> None:
    model = Scaled(types.SimpleNamespace(dtype="float32"))
    assert model.own_shapes == {"scale": (4,)}
    whole = {name: torch.full_like(value, 2) for name, value in model.named_parameters()}
    own = {"scale", "model.layers.0.bias"}

    def load(weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        found = dict(weights)
        for name, tensor in found.items():
            model.get_parameter(name).data.copy_(tensor)
        return {*found}

    assert load_checked(model, whole.items(), load) == set(whole) - own
    assert all((model.get_parameter(name) == 2).all() for name in own)
    del whole["scale"]
    with pytest.raises(strict_loading.WeightsError, match="scale: missing"):
        load_checked(model, whole.items(), load)


def test_each_key_of_upstreams_configuration_is_known() -> None:
    from sglang.srt.configs.qwen3_next import Qwen3NextConfig

    keys = ours("configs.qwen3_next_ext_keys")
    parameters = inspect.signature(Qwen3NextConfig.__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD and name != "self"}
    assert keys.check(defaults) == []
    of_upstream = {key: value for key, value in keys.DEFAULTS.items() if key in defaults}
    assert of_upstream == {key: defaults[key] for key in of_upstream}
    assert len(of_upstream) > 6
