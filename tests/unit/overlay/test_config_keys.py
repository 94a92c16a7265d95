"""What a config.json may say, without an engine: files of each version of transformers, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from unit.conftest import REPOSITORY
from unit.overlay.test_overlay_registry import FILE, load

keys, ext, ext_vl = (
    load(FILE.parent / "configs" / f"{name}.py")
    for name in ("config_keys", "qwen3_next_ext_keys", "qwen3_next_ext_vl_keys")
)
KEYS = keys.Keys(
    read=(*keys.ROPE, "attention_bias", "rms_norm_eps"),
    sizes=keys.SIZES,
    nullable=("head_dim",),
    fixed={"hidden_act": ("silu",), "mlp_bias": (False,)},
)


def check(config: Mapping[str, Any]) -> list[str]:
    """Check a config.json for a model with no more than what several have."""
    return list(keys.key_problems(config, KEYS) or keys.rope_problems(config, whole=True))


def settle(config: object, said: Mapping[str, Any]) -> None:
    """Let a configuration object of this model say what config.json says."""
    keys.refuse(check(said))
    keys.settle_rope(config, keys.rope_of(said))


DATA = REPOSITORY / "tests" / "data"
WRITTEN = json.loads((DATA / "written-configs.json").read_text(encoding="utf-8"))
CHECKS = {"llama": check, "qwen3_next": ext.check}
SMALL = {"num_hidden_layers": 4, "hidden_size": 64, "max_position_embeddings": 4096}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def config_json(name: str) -> dict[str, Any]:
    return dict(json.loads((DATA / name / "config.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("version", WRITTEN)
@pytest.mark.parametrize("model", CHECKS)
def test_what_transformers_writes_is_read_or_refused_by_name(version: str, model: str) -> None:
    for rope, config in WRITTEN[version][model].items():
        problems = CHECKS[model](config)
        assert [problem.partition(" ")[0].partition(".")[2] for problem in problems] == (
            ["rope_type"] if rope == "dynamic" else []
        )
        if not problems:
            oldest = next(iter(WRITTEN.values()))[model][rope]
            assert keys.rope_of(config) == keys.rope_of(oldest)


@pytest.mark.parametrize("value", ["big", True, math.nan, math.inf, None])
def test_a_number_is_one(value: object) -> None:
    own = keys.Keys(numbers=("scale",))
    assert keys.key_problems({"scale": value}, own) == [f"scale must be a finite number, not {value!r}"]
    assert keys.key_problems({"scale": -0.5}, own) == keys.key_problems({"scale": 3}, own) == []
    assert keys.key_problems({"scale": None}, keys.Keys(numbers=("scale",), nullable=("scale",))) == []


def test_checkpoints_of_this_project_are_read() -> None:
    assert ext.check(config_json("qwen3-next-ext")) == []
    assert ext_vl.check(config_json("qwen3-next-ext-vl")) == []


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rope_thta": 1e7}, "rope_thta is not a key of this model; did you mean rope_theta?"),
    ({"window": 8}, "window is not a key of this model; take it out if it says nothing about the model"),
    ({"mlp_only_layers": [0]}, "mlp_only_layers must be [], not [0]"),
    ({"use_sliding_window": True}, "use_sliding_window must be false, not true"),
    ({"num_experts": True}, "num_experts must be a whole number from 1 on, not True"),
    ({"rms_norm_eps": None}, "rms_norm_eps must not be null"),
    ({"rope_scaling": [1]}, "rope_scaling must be an object, not [1]"),
    ({"rope_theta": "1e7"}, "rope_theta must be a number above 0, not '1e7'"),
    ({"rope_theta": math.inf}, "rope_theta must be a number above 0, not inf"),
    ({"partial_rotary_factor": 1.5}, "partial_rotary_factor must be at most 1, not 1.5"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type 'yarn' needs factor"),
    ({"rope_scaling": {**YARN, "beta_quick": 2}}, "rope_scaling.beta_quick has no meaning with rope_type 'yarn'"),
    ({"rope_scaling": {**YARN, "attn_factor": 2.0}}, "rope_scaling.attn_factor has no meaning with rope_type 'yarn'"),
    (
        {"rope_parameters": {**YARN, "factor": 2.0}},
        "max_position_embeddings (4096) is more than rope_type 'yarn' covers",
    ),
    (
        {"rope_parameters": {"mrope_section": [1]}},
        "rope_parameters.mrope_section has no meaning with rope_type 'default'",
    ),
    ({"rope_parameters": {"full_attention": {}}}, "rope_parameters.full_attention has no meaning"),
    (
        {"rope_scaling": YARN, "rope_parameters": {"rope_type": "default"}},
        "rope_scaling.rope_type is 'yarn', and rope_p",
    ),
    ({"rope_scaling": {**YARN, "type": "linear"}}, "rope_scaling.type has no meaning"),
    (
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e7}},
        "rope_theta is 10000.0, and rope_parameters.rope_theta",
    ),
    (
        {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 0.25}},
        "partial_rotary_factor is 0.5, ",
    ),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_would_be_lost_or_is_not_the_model_is_named(changes: dict[str, Any], said: str) -> None:
    [problem] = ext.check({**SMALL, **changes})
    assert problem.startswith(said)


def test_both_forms_of_layers_without_positions_are_read_unless_they_differ() -> None:
    types = ["linear_attention", "full_attention"] * 2
    old = [*types[:3], "nope_attention"]
    for said in (
        {"layer_types": old},
        {"layer_types": types, "nope_layers": [3]},
        {"layer_types": old, "nope_layers": [3]},
    ):
        assert ext.check({**SMALL, **said}) == []
        assert ext.layers_of(said) == (types, [3])
    [problem] = ext.check({**SMALL, "layer_types": old, "nope_layers": [1]})
    assert problem.startswith("layer_types has nope_attention at [3], and nope_layers is [1]")


def test_keys_that_may_be_null_are_those_of_all_models_and_the_models_own() -> None:
    assert check({"rope_theta": None, "eos_token_id": None, "head_dim": None}) == []
    assert check({"rms_norm_eps": None, "vocab_size": None}) == [
        "rms_norm_eps must not be null",
        "vocab_size must be a whole number from 1 on, not None",
    ]


def test_all_unknown_keys_are_named_at_once() -> None:
    assert len(check({"hidden_sizes": 1, "num_layers": 2, "window": None, "_note": "x"})) == 2


def test_parts_of_a_multimodal_model_are_named() -> None:
    config = config_json("qwen3-next-ext-vl")
    config["text_config"]["n_group"] = 3
    config["vision_config"]["patch"] = 2
    config["rope_theta"] = 1e7
    assert [problem.partition(" must")[0].partition(" is")[0] for problem in ext_vl.check(config)] == [
        "rope_theta",
        "text_config.n_group",
        "vision_config.patch",
    ]
    assert "it belongs in text_config" in ext_vl.check(config)[0]
    assert ext_vl.check({"text_config": 3}) == ["text_config must be an object, not 3"]


def settled(said: Mapping[str, Any], **attributes: object) -> SimpleNamespace:
    """Let a configuration object of transformers 4 say a config.json for Llama."""
    config = SimpleNamespace(max_position_embeddings=4096, rope_theta=10000.0, rope_scaling=None, **attributes)
    settle(config, said)
    return config


class Standardised:
    """A configuration object of transformers 5."""

    max_position_embeddings = 4096
    rope_scaling = property(lambda self: self.rope_parameters)

    def __init__(self, rope_parameters: dict[str, Any] | None) -> None:
        self.rope_parameters = rope_parameters


def test_objects_of_both_kinds_say_what_transformers_5_has_written() -> None:
    parameters = {**YARN, "rope_theta": 1e6, "attention_factor": 1.5}
    old, new = settled({"rope_parameters": parameters}, rope_parameters=parameters), Standardised(parameters)
    settle(new, {"rope_parameters": parameters})
    for config in (old, new):
        assert vars(config)["rope_theta"] == 1e6
        assert config.rope_scaling.items() >= {**YARN, "attention_factor": 1.5}.items()
    assert not hasattr(old, "rope_parameters")
    assert new.rope_scaling["rope_theta"] == 1e6


@pytest.mark.parametrize("form", ["rope_theta", "rope_parameters"])
def test_positions_as_they_are_have_no_scaling(form: str) -> None:
    said: dict[str, Any] = {"rope_theta": 1e6} if form == "rope_theta" else {form: {"rope_theta": 1e6}}
    assert vars(settled(said)) == {
        "max_position_embeddings": 4096,
        "rope_theta": 1e6,
        "rope_scaling": None,
        "partial_rotary_factor": 1.0,
    }
    new = Standardised({"rope_type": "default", "rope_theta": 1e4})
    settle(new, said)
    assert new.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}


@pytest.mark.parametrize(
    ("keys_of_yarn", "magnitude"),
    [
        ({"attention_factor": 1.5}, 1.5),
        ({"attention_factor": 1.0}, 1.0),
        ({"mscale": 1.0, "mscale_all_dim": 0.5}, (0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1)),
        ({"mscale": 2.0}, None),  # transformers takes no notice of one without the other
        ({}, None),
    ],
)
def test_yarn_scales_attention_as_transformers_does(keys_of_yarn: dict[str, float], magnitude: float | None) -> None:
    scaling = settled({"rope_scaling": {**YARN, **keys_of_yarn}}).rope_scaling
    of_upstream = 0.1 * math.log(4) + 1  # which get_rope multiplies by attn_factor
    got = scaling.get("attn_factor", 1.0) * of_upstream
    assert got == pytest.approx(of_upstream if magnitude is None else magnitude)
    assert not {"mscale", "mscale_all_dim"} & scaling.keys()
    assert settled({"rope_scaling": scaling}).rope_scaling == scaling  # read and settled again


def test_what_is_written_is_the_model_under_its_own_name() -> None:
    held = {
        **config_json("qwen3-next-ext"),
        "architectures": ["Qwen3NextForCausalLM"],
        "overlay_architecture": "Qwen3NextExtForCausalLM",
        "checkpoint_sizes": {},
        "rope_parameters": {**YARN, "attention_factor": 1.5, "attn_factor": 1.3, "rope_theta": 10000.0},
    }
    written = keys.written(held, ext.KEYS)
    assert written["architectures"] == ["Qwen3NextExtForCausalLM"]
    assert written["rope_scaling"] == {**YARN, "attention_factor": 1.5}
    assert not {"overlay_architecture", "checkpoint_sizes", "rope_parameters"} & written.keys()
    assert ext.check(written) == []
