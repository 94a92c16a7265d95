"""A config.json and the server's arguments say which model is served: that one is, or the server says why not."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from reference.checkpoints import CONFIGS, TRAINED, TRAINED_ON_PICTURES

from engine.harness import ours

registry = ours("overlay_registry")
keys = ours("configs.config_keys")
EXT = json.loads((TRAINED / "config.json").read_text(encoding="utf-8"))
EXT_VL = json.loads((TRAINED_ON_PICTURES / "config.json").read_text(encoding="utf-8"))
OURS = {
    "LlamaLogitShapingForCausalLM": CONFIGS["llama-logit-shaping"],
    "Qwen3NextExtForCausalLM": EXT,
    "Qwen3NextExtVLForConditionalGeneration": EXT_VL,
}


def resolve(folder: Path, config: dict[str, Any], **arguments: Any) -> tuple[str, Any] | None:  # noqa: ANN401
    """Go as far as a server goes before it loads weights: give the architecture that serves, and its configuration."""
    from sglang.srt.configs.model_config import ModelConfig

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if "overrides" in arguments:
        arguments["model_override_args"] = json.dumps(arguments.pop("overrides"))
    model_config = ModelConfig(str(folder), **arguments)
    found = registry.resolve_model(model_config)
    return None if found is None else (found[1], model_config.hf_config)


def test_every_row_of_the_registry_is_tested() -> None:
    assert OURS.keys() == {row.architecture for row in registry.MODELS}


@pytest.mark.parametrize("name", OURS)
def test_a_configuration_that_is_saved_is_served_as_the_same_model(name: str, tmp_path: Path) -> None:
    found = resolve(tmp_path, OURS[name])
    assert found is not None
    served, config = found
    assert served == name
    saved = tmp_path / "saved"
    config.save_pretrained(saved)
    again = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    assert again["architectures"] == [name]
    if name != "LlamaLogitShapingForCausalLM":  # a class of transformers', which writes what upstream has noted on it
        assert resolve(saved, again) is not None


@pytest.mark.parametrize("name", [name for name in OURS if name.startswith("Qwen3Next")])
def test_our_model_type_without_an_architecture_is_ours(name: str, tmp_path: Path) -> None:
    found = resolve(tmp_path, {**OURS[name], "architectures": None})
    assert found is not None
    assert found[0] == name


@pytest.mark.parametrize("name", [name for name in OURS if name.startswith("Qwen3Next")])
def test_our_model_type_with_the_architecture_of_the_base_is_ours(name: str, tmp_path: Path) -> None:
    found = resolve(tmp_path, {**OURS[name], "architectures": ["Qwen3NextForCausalLM"]})
    assert found is not None
    assert found[0] == name


@pytest.mark.parametrize("name", [name for name in OURS if name.startswith("Qwen3Next")])
def test_our_model_type_with_another_architecture_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"architectures is \['LlamaForCausalLM'\], and model_type 'qwen3_next_ext"):
        resolve(tmp_path, {**OURS[name], "architectures": ["LlamaForCausalLM"]})


def test_the_architecture_of_llama_with_a_key_of_ours_is_refused(tmp_path: Path) -> None:
    config = OURS["LlamaLogitShapingForCausalLM"]
    with pytest.raises(
        RuntimeError, match=r"has logit_softcap, logit_transform, and architectures \['LlamaForCausalLM'\]"
    ):
        resolve(tmp_path, {**config, "architectures": ["LlamaForCausalLM"]})


def test_our_architecture_with_the_model_type_of_the_base_is_refused(tmp_path: Path) -> None:
    config = {**CONFIGS["qwen3-next"], "architectures": ["Qwen3NextExtForCausalLM"]}
    said = r"Qwen3NextExtForCausalLM needs model_type 'qwen3_next_ext', and config\.json has 'qwen3_next'; adopt"
    with pytest.raises(RuntimeError, match=said):
        resolve(tmp_path, config)
    with pytest.raises(RuntimeError, match=said):
        resolve(tmp_path, CONFIGS["qwen3-next"], overrides={"architectures": ["Qwen3NextExtForCausalLM"]})


@pytest.mark.parametrize("name", [name for name in OURS if name.startswith("Qwen3Next")])
def test_architectures_that_arguments_change_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=f"that of {name}, and --json-model-override-args changes its architectures"):
        resolve(tmp_path, OURS[name], overrides={"architectures": ["Qwen2ForCausalLM"]})


@pytest.mark.parametrize("name", OURS)
def test_embeddings_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=f"{name} generates text and has no embeddings; leave --is-embedding out"):
        resolve(tmp_path, OURS[name], is_embedding=True)


@pytest.mark.parametrize("name", ["LlamaLogitShapingForCausalLM", "Qwen3NextExtVLForConditionalGeneration"])
def test_a_draft_of_a_model_that_has_none_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=f"{name} has no draft model; leave --speculative-algorithm out"):
        resolve(tmp_path, OURS[name], is_draft_model=True)


def test_upstreams_qwen3_next_does_not_lose_rope_parameters(tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIGS["qwen3-next"].items() if key != "rope_theta"}
    parameters = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}
    for draft in (False, True):
        with pytest.raises(
            RuntimeError, match=r"rope_parameters\.rope_theta 10000000\.0, and this model uses rope_theta"
        ):
            resolve(tmp_path, {**config, "rope_parameters": parameters}, is_draft_model=draft)
    # Upstream remembers a configuration by its folder.
    assert resolve(tmp_path / "both", {**config, "rope_parameters": parameters, "rope_theta": 1e7}) is None
    assert resolve(tmp_path / "old", CONFIGS["qwen3-next"]) is None


def test_each_key_of_upstreams_configuration_is_known() -> None:
    from sglang.srt.configs.qwen3_next import Qwen3NextConfig

    parameters = inspect.signature(Qwen3NextConfig.__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD and name != "self"}
    assert keys.check_qwen3_next_ext(defaults) == []
    of_upstream = {key: value for key, value in keys.DEFAULTS.items() if key in defaults}
    assert of_upstream == {key: defaults[key] for key in of_upstream}
    assert len(of_upstream) > 6


def test_each_key_that_this_transformers_writes_for_llama_is_known() -> None:
    from transformers import LlamaConfig

    assert keys.check_llama(json.loads(LlamaConfig().to_json_string())) == []
