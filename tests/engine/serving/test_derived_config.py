"""A configuration that derives from Transformers', or from one of the overlay's, checks its keys as that does."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from transformers import Gemma3TextConfig, LlamaConfig, Qwen3MoeConfig

from engine.harness import ours

Keys = ours("configs.config_keys").Keys
derived = ours("configs.derived_config")
ext = ours("configs.qwen3_next_ext")
ext_keys = ours("configs.qwen3_next_ext_keys")


class Llama(derived.DerivedConfig, LlamaConfig):  # type: ignore[name-defined, misc]
    model_type = "derived_llama"
    own = Keys(numbers=("scale",), fixed={"mlp_bias": (False,)})


class Moe(derived.DerivedConfig, Qwen3MoeConfig):  # type: ignore[name-defined, misc]
    model_type = "derived_moe"


class Windowed(derived.DerivedConfig, Gemma3TextConfig):  # type: ignore[name-defined, misc]
    model_type = "derived_windowed"


class OfOurs(ext.Qwen3NextExtConfig):  # type: ignore[name-defined, misc]
    model_type = "derived_ext"
    known_keys = replace(ext_keys.KEYS, read=(*ext_keys.KEYS.read, "scale"))


def settled(cls: Any, **said: object) -> Any:  # noqa: ANN401
    """Make a configuration as a server does: of config.json, and then told all of it."""
    config = cls(**said)
    derived.settle(config, said)
    return config


def test_its_keys_are_those_of_its_base_and_its_own() -> None:
    config = settled(Llama, hidden_size=64, num_attention_heads=4, scale=2.5, torch_dtype="float32", use_cache=False)
    assert (config.hidden_size, config.scale) == (64, 2.5)
    assert config.model_type == "derived_llama"
    # By each name that this release's transformers has for it.
    names = ["num_experts", *(name for name, of in Qwen3MoeConfig.attribute_map.items() if of == "num_experts")]
    assert [settled(Moe, **{name: 4}).num_experts for name in names] == [4] * len(names)


@pytest.mark.parametrize(
    ("cls", "said", "named"),
    [
        (Llama, {"hidden_sizes": 64}, "hidden_sizes is not a key of this model; did you mean hidden_size?"),
        (Llama, {"hidden_size": 0}, "hidden_size must be a whole number from 1 on, not 0"),
        (Llama, {"hidden_size": None}, "hidden_size must be a whole number from 1 on, not None"),
        (Llama, {"mlp_bias": True}, "mlp_bias must be false, not true"),
        (Llama, {"scale": "2.5"}, "scale must be a finite number, not '2.5'"),
        (Moe, {"scale": 1.0}, "scale is not a key of this model"),
        (Llama, {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 2e4}}, "drop one"),
        (Llama, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type must be one of"),
        (Windowed, {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "rope_type must be 'default'"),
        (
            Windowed,
            {"rope_local_base_freq": 1e4, "rope_parameters": {"sliding_attention": {"rope_theta": 2e4}}},
            "rope_local_base_freq is 10000.0; drop one",
        ),
    ],
)
def test_what_it_cannot_be_is_named(cls: Any, said: dict[str, object], named: str) -> None:  # noqa: ANN401
    (problem,) = derived.problems(cls, said)
    assert named in problem


def test_layers_that_upstream_does_not_have() -> None:
    class Full(Llama):
        model_type = "derived_full"
        own = Keys(read=("layer_types",))
        layer_kinds = ("full_attention",)

    assert derived.problems(Full, {"layer_types": ["full_attention"] * 2}) == []
    (problem,) = derived.problems(Full, {"layer_types": ["full_attention", "sliding_attention"]})
    assert problem == "layer_types may have full_attention alone, not ['full_attention', 'sliding_attention']"


@pytest.mark.parametrize(
    "said", [{"rope_theta": 5e5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}]
)
def test_rotary_positions_are_read_in_both_forms(said: dict[str, object]) -> None:
    assert derived.rope_bases(settled(Llama, **said)) == {"": 5e5}


@pytest.mark.parametrize(
    "said",
    [
        {"rope_theta": 5e5, "rope_local_base_freq": 2e4},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 5e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
            }
        },
    ],
)
def test_layers_with_two_bases_are_read_in_both_forms(said: dict[str, object]) -> None:
    config = settled(Windowed, **said)
    assert derived.rope_bases(config) == {"full_attention": 5e5, "sliding_attention": 2e4}
    assert (config.rope_theta, config.rope_local_base_freq) == (5e5, 2e4)
    if new := getattr(config, "rope_parameters", None):  # of transformers 5
        assert new["full_attention"]["factor"] == 1.0  # which upstream's Gemma3 asks for in two releases


@pytest.mark.parametrize("cls", [Llama, Moe, Windowed])
def test_what_is_written_is_read_again(cls: Any) -> None:  # noqa: ANN401
    config = settled(cls, rope_theta=5e5)
    config.swa_head_dim = 7  # what upstream notes on it
    written = json.loads(config.to_json_string(use_diff=False))
    assert "swa_head_dim" not in written
    assert derived.rope_bases(settled(cls, **written)) == derived.rope_bases(config)


def test_a_class_that_derives_from_ours_keeps_its_constructor() -> None:
    config = OfOurs(scale=2.0, nope_layers=[3], num_hidden_layers=4)
    assert (config.scale, config.nope_layers) == (2.0, [3])
    assert config.checkpoint_sizes["num_attention_heads"] == config.num_attention_heads
    with pytest.raises(ValueError, match="other is not a key of this model"):
        OfOurs(other=1)
    with pytest.raises(ValueError, match="scale is not a key of this model"):
        ext.Qwen3NextExtConfig(scale=2.0)
