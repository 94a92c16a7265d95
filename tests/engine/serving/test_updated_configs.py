"""A folder of new weights may not have a config.json that says another model than the one that is served."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from reference.cases import cases
from reference.checkpoints import write_config

from engine.harness import ours

Faults = Callable[..., list[str]]

EXT, LLAMA, WINDOWS, VL = "qwen3-next-ext", "llama-logit-shaping", "qwen3-windows", "qwen3-next-ext-vl"


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    """Give what lists the faults of a config.json with changes, None for a key that is left out."""
    from sglang.srt.configs.model_config import ModelConfig

    registry = ours("overlay_registry")

    def find(model: str, changes: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> list[str]:
        case = cases()[model]
        config = dict(case.config)
        served = write_config(Path(tempfile.mkdtemp(dir=tmp_path)), config)  # upstream remembers what it has read
        model_config = ModelConfig(
            str(served), is_embedding=case.vector is not None, model_override_args=json.dumps(overrides or {})
        )
        registry.resolve_model(model_config)
        write_config(served, {**config, "hidden_size": 1})  # what is there later counts for nothing
        model_config.model_path = "the folder of an update"
        other = {key: value for key, value in {**config, **changes}.items() if value is not None}
        found: list[str] = registry.config_faults(copy.copy(model_config), str(write_config(tmp_path / "other", other)))
        return found

    return find


@pytest.mark.parametrize("model", [name for name, case in cases().items() if case.ours])
def test_the_same_configuration(faults: Faults, model: str) -> None:
    assert faults(model, {}) == []
    without_effect = {"use_cache": False, "transformers_version": "9.9", "torch_dtype": "bfloat16", "_name": "x"}
    assert faults(model, without_effect) == []


@pytest.mark.parametrize(
    ("model", "changes", "found"),
    [
        (LLAMA, {"logit_softcap": 50.0}, ["logit_softcap is 50.0, and the model is served with 10.0"]),
        (LLAMA, {"num_key_value_heads": 1}, ["num_key_value_heads is 1, and the model is served with 2"]),
        (EXT, {"nope_layers": []}, ["layer_types is", "nope_layers is []"]),
        (EXT, {"topk_group": 1, "rms_norm_eps": 1e-5}, ["rms_norm_eps is 1e-05", "topk_group is 1"]),
        (EXT, {"rope_theta": 7.0}, ["rope_theta is 7.0"]),
        (WINDOWS, {"sliding_window": 9}, ["sliding_window is 9"]),
        (VL, {"image_token_id": 5}, ["image_token_id is 5"]),
        (LLAMA, {"eos_token_id": 7}, ["eos_token_id is 7"]),
    ],
)
def test_each_key_that_differs_is_named(faults: Faults, model: str, changes: dict[str, Any], found: list[str]) -> None:
    said = faults(model, changes)
    assert len(said) == len(found), said
    for line, start in zip(said, found, strict=True):
        assert line.startswith(f"config.json: {start}"), line


def test_what_the_server_overrides_may_differ(faults: Faults) -> None:
    assert faults(LLAMA, {"logit_softcap": 50.0}, {"logit_softcap": 20.0}) == []


def test_a_key_that_is_left_out_has_its_default(faults: Faults) -> None:
    assert faults(EXT, {"decoder_sparse_step": None, "hidden_act": None, "partial_rotary_factor": None}) == [
        "config.json: partial_rotary_factor is 0.25, and the model is served with 0.5"
    ]
    listed = ["linear_attention", "linear_attention", "full_attention"] * 2
    assert faults(EXT, {"layer_types": None, "full_attention_interval": 3, "nope_layers": [5]}) == []
    assert cases()[EXT].config["layer_types"] == listed


def test_both_forms_of_rotary_positions(faults: Faults) -> None:
    for model in (LLAMA, EXT):
        old = dict.fromkeys(("rope_theta", "rope_scaling", "partial_rotary_factor"))
        rope = {key: value for key in old if (value := cases()[model].config.get(key)) is not None}
        assert faults(model, {**old, "rope_parameters": {"rope_type": "default", **rope}}) == []
        other = faults(model, {**old, "rope_parameters": {"rope_type": "default", **rope, "rope_theta": 7.0}})
        assert "rope_theta is 7.0, and the model is served with" in other[-1]


@pytest.mark.parametrize(
    ("key", "value"), [("rms_norm_epsilon", 1e-5), ("hidden_size", "large"), ("logit_softcap", -1)]
)
def test_what_the_model_cannot_have(faults: Faults, key: str, value: object) -> None:
    [said] = faults(LLAMA, {key: value})
    assert key in said


def test_a_file_that_cannot_be_read(faults: Faults, tmp_path: Path) -> None:
    from sglang.srt.configs.model_config import ModelConfig

    registry = ours("overlay_registry")
    model_config = ModelConfig(str(write_config(tmp_path / "served", cases()[LLAMA].config)))
    registry.resolve_model(model_config)
    (tmp_path / "other").mkdir()
    assert registry.config_faults(model_config, str(tmp_path / "other")) == []
    (tmp_path / "other" / "config.json").write_text("{")
    assert registry.config_faults(model_config, str(tmp_path / "other")) == [
        f"{tmp_path / 'other'}/config.json: it cannot be read"
    ]
