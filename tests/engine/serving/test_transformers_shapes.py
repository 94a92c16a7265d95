"""A model that takes what Transformers' does expects the checkpoints that Transformers writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, Qwen3Config

from engine.harness import ours

transformers_shapes = ours("model_loader.transformers_shapes").transformers_shapes

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 8,
    "head_dim": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 4,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "n_group": 2,
    "topk_group": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TYPES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "qwen3_next", "gemma3_text", "deepseek_v3", "mixtral")


class DerivedConfig(Qwen3Config):  # type: ignore[misc]
    """A configuration of one's own, of which Transformers knows nothing."""

    model_type = "derived"


def written_by_transformers(config: PretrainedConfig, folder: Path) -> dict[str, tuple[int, ...]]:
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("model_type", TYPES)
def test_the_tensors_are_those_that_transformers_writes(model_type: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(model_type, **SIZES)
    assert transformers_shapes(config) == written_by_transformers(config, tmp_path)


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"tie_word_embeddings": True}, {"head_dim": None}])
def test_they_go_by_the_configuration(changes: dict[str, object], tmp_path: Path) -> None:
    config = AutoConfig.for_model("llama", **SIZES | changes)
    found = transformers_shapes(config)
    assert found == written_by_transformers(config, tmp_path)
    assert ("lm_head.weight" in found) is not config.tie_word_embeddings


def test_a_derived_configuration_has_those_of_its_base(tmp_path: Path) -> None:
    base = Qwen3Config(**SIZES)
    assert transformers_shapes(DerivedConfig(**SIZES)) == written_by_transformers(base, tmp_path)


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
def test_they_are_those_of_the_checkpoint_where_upstream_rounds_up_those_of_the_model(
    model_type: str, tmp_path: Path
) -> None:
    """As it does on a CPU for ranks that cannot share one key, or an inner size, evenly."""
    given = SIZES | {"num_key_value_heads": 1}
    config = AutoConfig.for_model(model_type, **given)
    rounded = {"num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 64, "moe_intermediate_size": 64}
    rounded = {key: value for key, value in rounded.items() if hasattr(config, key)}
    config.update(rounded | {f"original_{key}": given[key] for key in rounded if key != "num_key_value_heads"})
    config.original_total_num_kv_heads = 1
    written = written_by_transformers(AutoConfig.for_model(model_type, **given), tmp_path)
    assert transformers_shapes(config) == written


def test_a_configuration_without_a_language_model_is_named() -> None:
    with pytest.raises(ValueError, match="no language model for"):
        transformers_shapes(PretrainedConfig())
