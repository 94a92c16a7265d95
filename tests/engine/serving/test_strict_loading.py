"""A checkpoint's tensors are checked one by one, and every fault is named with the file that it is in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reference.checkpoints import change_tensors, make_variant
from safetensors.torch import load_file
from transformers import LlamaConfig, PretrainedConfig

from engine.harness import ours

checked_weights = ours("model_loader.strict_loading").checked_weights

EXPECTED = {"a": (2,), "b": (3, 3), "c": (1,)}
WEIGHTS = {"a": torch.zeros(2), "b": torch.zeros(3, 3), "c": torch.zeros(1)}
CONFIG = PretrainedConfig(dtype="float32", torch_dtype="float32")


def faults(weights: dict[str, torch.Tensor], config: PretrainedConfig = CONFIG) -> list[str]:
    """List the lines that a whole checkpoint of these tensors is refused with."""
    with pytest.raises(ValueError, match="does not fit its config") as caught:
        list(checked_weights(iter(weights.items()), EXPECTED, config))
    return str(caught.value).splitlines()[1:]


def test_what_fits_is_passed_on() -> None:
    constant = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(16)}
    assert dict(checked_weights(iter((WEIGHTS | constant).items()), EXPECTED, CONFIG)) == WEIGHTS


def test_every_fault_is_named() -> None:
    weights = {"b": torch.zeros(3, 4), "c": torch.zeros(1, dtype=torch.int8), "d": torch.zeros(1)}
    assert faults(weights) == [
        "  b: its shape is (3, 4), not (3, 3)",
        "  c: its dtype is int8, not float32",
        "  d: not a tensor of this model",
        "  a: missing",
    ]


@pytest.mark.parametrize("declared", ["bfloat16", torch.bfloat16])
def test_a_tensor_has_the_declared_dtype_or_float32(declared: object) -> None:
    config = LlamaConfig()
    config.dtype = declared  # a string in config.json; transformers may make it a dtype
    weights = {"a": WEIGHTS["a"].bfloat16(), "b": WEIGHTS["b"], "c": WEIGHTS["c"].half()}
    assert faults(weights, config) == ["  c: its dtype is float16, not bfloat16 or float32"]


def test_part_of_the_weights_may_be_updated() -> None:
    part = [("b", torch.zeros(3, 3, dtype=torch.bfloat16))]
    assert [name for name, _ in checked_weights(part, EXPECTED, CONFIG)] == ["b"]
    with pytest.raises(ValueError, match="d: not a tensor of this model"):
        list(checked_weights([("d", torch.zeros(3))], EXPECTED, CONFIG))


def test_ignored_and_other_tensors() -> None:
    weights = {**WEIGHTS, "mtp.a": torch.zeros(9), "a.scale": torch.zeros(1)}
    passed = dict(checked_weights(iter(weights.items()), EXPECTED, CONFIG, ignored=("mtp.",), others=True))
    assert passed.keys() == WEIGHTS.keys() | {"a.scale"}


def test_the_shard_is_named(tmp_path: Path) -> None:
    make_variant(tmp_path, {})
    name = "model.layers.0.input_layernorm.weight"
    first = "model-00001-of-00002.safetensors"
    change_tensors(tmp_path, lambda tensors: tensors | {name: torch.zeros(5)}, first)
    config = PretrainedConfig(name_or_path=str(tmp_path))
    weights = iter(load_file(tmp_path / first).items())
    with pytest.raises(ValueError, match="does not fit its config") as caught:
        list(checked_weights(weights, {name: (128,)}, config, ignored=("model.embed_tokens",), others=True))
    assert str(caught.value).splitlines()[1:] == [f"  {name} ({first}): its shape is (5,), not (128,)"]
