"""A config.json and the server's arguments say which model is served: that one is, or the server says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reference.cases import Case, cases

from engine.harness import OURS, ours

registry = ours("overlay_registry")
ROWS = {row.architecture: row for row in registry.MODELS}
CONFIGS = {case.architecture: dict(case.config) for case in OURS.values()}
# Those whose model_type is their own, and those that share it with a model of upstream's.
OWN_TYPE = [name for name in CONFIGS if ROWS[name].config is not None]
SHARED_TYPE = [name for name in CONFIGS if ROWS[name].config is None]
VECTORS = {config["model_type"] for name, config in CONFIGS.items() if not ROWS[name].generates}
UPSTREAM = {case.architecture: cases()[case.upstream] for case in OURS.values() if case.upstream}
BASES = {name: case for name, case in UPSTREAM.items() if ROWS[name].base == case.architecture}


def architecture(case: Case) -> str:
    """Name a case in a test."""
    return case.architecture


def another(name: str) -> str:
    """Name an architecture of upstream's from which a model does not derive."""
    return next(other for other in ("LlamaForCausalLM", "Qwen2ForCausalLM") if other != ROWS[name].base)


def resolve(folder: Path, config: dict[str, Any], **arguments: Any) -> tuple[str, Any] | None:  # noqa: ANN401
    """Go as far as a server goes before it loads weights: give the architecture that serves, and its configuration."""
    from sglang.srt.configs.model_config import ModelConfig

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if "overrides" in arguments:
        arguments["model_override_args"] = json.dumps(arguments.pop("overrides"))
    is_embedding = config["model_type"] in VECTORS
    model_config = ModelConfig(str(folder), **{"is_embedding": is_embedding, **arguments})
    found = registry.resolve_model(model_config)
    return None if found is None else (found[1], model_config.hf_config)


def test_every_row_of_the_registry_is_tested() -> None:
    assert CONFIGS.keys() == {row.architecture for row in registry.MODELS}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_is_saved_is_served_as_the_same_model(name: str, tmp_path: Path) -> None:
    found = resolve(tmp_path, CONFIGS[name])
    assert found is not None
    served, config = found
    assert served == name
    saved = tmp_path / "saved"
    config.save_pretrained(saved)
    again = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    assert again["architectures"] == [name]
    if name in OWN_TYPE:  # else it is a class of transformers', which writes what upstream has noted on it
        assert resolve(saved, again) is not None


@pytest.mark.parametrize("name", OWN_TYPE)
def test_our_model_type_without_an_architecture_is_ours(name: str, tmp_path: Path) -> None:
    found = resolve(tmp_path, {**CONFIGS[name], "architectures": None})
    assert found is not None
    assert found[0] == name


@pytest.mark.parametrize("name", [name for name in OWN_TYPE if ROWS[name].base])
def test_our_model_type_with_the_architecture_of_the_base_is_ours(name: str, tmp_path: Path) -> None:
    found = resolve(tmp_path, {**CONFIGS[name], "architectures": [ROWS[name].base]})
    assert found is not None
    assert found[0] == name


@pytest.mark.parametrize("name", OWN_TYPE)
def test_our_model_type_with_another_architecture_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=rf"architectures is \['{another(name)}'\], and model_type '"):
        resolve(tmp_path, {**CONFIGS[name], "architectures": [another(name)]})


@pytest.mark.parametrize("name", [name for name in SHARED_TYPE if name in UPSTREAM])
def test_the_architecture_of_upstreams_with_a_key_of_ours_is_refused(name: str, tmp_path: Path) -> None:
    upstream = UPSTREAM[name].architecture
    there = ", ".join(key for key in sorted(ROWS[name].extensions) if key in CONFIGS[name])
    with pytest.raises(RuntimeError, match=rf"has {there}, and architectures \['{upstream}'\]"):
        resolve(tmp_path, {**CONFIGS[name], "architectures": [upstream]})


@pytest.mark.parametrize("name", [name for name in OWN_TYPE if name in BASES])
def test_our_architecture_with_the_model_type_of_the_base_is_refused(name: str, tmp_path: Path) -> None:
    config, base = CONFIGS[name], BASES[name].config
    said = f"{name} needs model_type '{config['model_type']}', and config\\.json has '{base['model_type']}'; adopt"
    with pytest.raises(RuntimeError, match=said):
        resolve(tmp_path, {**base, "architectures": [name]})
    with pytest.raises(RuntimeError, match=said):
        resolve(tmp_path, dict(base), overrides={"architectures": [name]})


@pytest.mark.parametrize("name", OWN_TYPE)
def test_architectures_that_arguments_change_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=f"that of {name}, and --json-model-override-args changes its architectures"):
        resolve(tmp_path, CONFIGS[name], overrides={"architectures": [another(name)]})


@pytest.mark.parametrize("name", CONFIGS)
def test_embeddings_are_refused_or_asked_for(name: str, tmp_path: Path) -> None:
    generates = ROWS[name].generates
    said = "generates text and has no embeddings; leave --is-embedding out"
    if not generates:
        said = "gives a vector for each text and generates none; serve it with --is-embedding"
    with pytest.raises(RuntimeError, match=f"{name} {said}"):
        resolve(tmp_path, CONFIGS[name], is_embedding=generates)


@pytest.mark.parametrize("name", [name for name in CONFIGS if ROWS[name].draft is None])
def test_a_draft_of_a_model_that_has_none_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=f"{name} has no draft model; leave --speculative-algorithm out"):
        resolve(tmp_path, CONFIGS[name], is_draft_model=True)


@pytest.mark.parametrize("base", {case.architecture: case for case in BASES.values()}.values(), ids=architecture)
def test_a_base_does_not_lose_rope_parameters(base: Case, tmp_path: Path) -> None:
    config = {key: value for key, value in base.config.items() if key != "rope_theta"}
    parameters = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}
    for draft in (False, True):
        with pytest.raises(
            RuntimeError, match=r"rope_parameters\.rope_theta 10000000\.0, and this model uses rope_theta"
        ):
            resolve(tmp_path, {**config, "rope_parameters": parameters}, is_draft_model=draft)
    # Upstream remembers a configuration by its folder.
    assert resolve(tmp_path / "both", {**config, "rope_parameters": parameters, "rope_theta": 1e7}) is None
    assert resolve(tmp_path / "old", dict(base.config)) is None
