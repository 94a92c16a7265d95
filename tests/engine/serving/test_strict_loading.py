"""A checkpoint's tensors are checked one by one, and every fault is named with the file that it is in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from reference.checkpoints import change_tensors
from safetensors.torch import save_file
from transformers import LlamaConfig, PretrainedConfig

from engine.harness import ours

strict_loading = ours("model_loader.strict_loading")
Check, Expected, WeightsError = strict_loading.Check, strict_loading.Expected, strict_loading.WeightsError

EXPECTED = {"a": Expected(shape=(2,)), "b": Expected(shape=(3, 3)), "c": Expected(shape=(1,))}
WEIGHTS = {"a": torch.zeros(2), "b": torch.zeros(3, 3), "c": torch.zeros(1)}
CONFIG = PretrainedConfig(dtype="float32", torch_dtype="float32")


def check(**changes: object) -> Any:  # noqa: ANN401
    """Make a check of EXPECTED in float32."""
    return Check(**{"expected": EXPECTED, "dtype": torch.float32, **changes})


def faults(weights: dict[str, torch.Tensor], **changes: object) -> list[str]:
    """List the lines that a whole checkpoint of these tensors is refused with."""
    with pytest.raises(ValueError, match="does not fit its config") as caught:
        list(check(**changes).passed(weights.items(), CONFIG))
    return str(caught.value).splitlines()[1:]


def test_what_fits_is_passed_on() -> None:
    constant = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(16)}
    assert dict(check().passed((WEIGHTS | constant).items(), CONFIG)) == WEIGHTS


def test_every_fault_is_named() -> None:
    weights = {"b": torch.zeros(3, 4), "c": torch.zeros(1, dtype=torch.int8), "d": torch.zeros(1)}
    assert faults(weights) == [
        "  b: its shape is (3, 4), not (3, 3)",
        "  c: its dtype is int8, not bfloat16 or float16 or float32",
        "  d: not a tensor of this model",
        "  a: missing",
    ]


@pytest.mark.parametrize("declared", ["bfloat16", torch.bfloat16])
def test_a_tensor_has_a_dtype_that_the_declared_one_holds_or_float32(declared: object) -> None:
    config = LlamaConfig()
    config.dtype = declared  # a string in config.json; transformers may make it a dtype
    dtype = strict_loading.declared_dtype(config)
    weights = {"a": WEIGHTS["a"].bfloat16(), "b": WEIGHTS["b"], "c": WEIGHTS["c"].half()}
    assert faults(weights, dtype=dtype) == ["  c: its dtype is float16, not bfloat16 or float32"]
    assert dict(check().passed(weights.items(), CONFIG)) == weights  # float32 holds all three


def test_a_list_is_a_whole_checkpoint_unless_it_is_said_to_be_a_part() -> None:
    part = [("b", torch.zeros(3, 3))]
    with pytest.raises(WeightsError, match="a: missing"):
        list(check().passed(part, CONFIG))
    assert check().faults([strict_loading.header_of(*part[0])], complete=False) == []
    assert check().faults([strict_loading.header_of(*part[0])], complete=True) == ["a: missing", "c: missing"]


def test_the_same_tensor_twice() -> None:
    weights = [*WEIGHTS.items(), ("a", torch.ones(2))]
    with pytest.raises(WeightsError, match=r":\n  a: there twice$"):
        list(check().passed(iter(weights), CONFIG))
    headers = [strict_loading.header_of(name, tensor) for name, tensor in weights]
    assert check().faults(headers, complete=True) == ["a: there 2 times"]


def test_a_single_value_has_one_dimension_or_none() -> None:
    assert faults({**WEIGHTS, "c": torch.zeros(2)}) == ["  c: its shape is (2,), not (1,)"]
    assert dict(check().passed({**WEIGHTS, "c": torch.tensor(0.0)}.items(), CONFIG)).keys() == WEIGHTS.keys()


def test_ignored_tensors_and_layers_of_which_nothing_is_known() -> None:
    unchecked = {"x.proj": "its format is not known"}
    weights = {**WEIGHTS, "mtp.a": torch.zeros(9), "x.proj.scale": torch.zeros(1)}
    passed = check(ignored=("mtp.",), unchecked=unchecked).passed(weights.items(), CONFIG)
    assert dict(passed).keys() == WEIGHTS.keys() | {"x.proj.scale"}
    assert faults({**WEIGHTS, "x.other": torch.zeros(1)}, unchecked=unchecked) == [
        "  x.other: not a tensor of this model",
        "  x.proj.*: missing",
    ]


def test_a_draft_must_be_there() -> None:
    assert faults(WEIGHTS, draft="mtp.") == [
        "  the checkpoint has no draft (mtp.* tensors); serve it without --speculative-algorithm"
    ]


def test_the_shard_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(5)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(3, 3)}, tmp_path / "model-00002-of-00002.safetensors")
    change_tensors(tmp_path, dict)
    config = PretrainedConfig(name_or_path=str(tmp_path))
    weights = {"a": torch.zeros(5), "b": torch.zeros(3, 3), "c": torch.zeros(1)}
    with pytest.raises(ValueError, match="does not fit its config") as caught:
        list(Check(expected=EXPECTED).passed(weights.items(), config))
    said = "  a (model-00001-of-00002.safetensors): its shape is (5,), not (2,)"
    assert str(caught.value).splitlines()[1:] == [said]


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_headers_tell_of_tensors_and_of_a_damaged_file(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"model{suffix}"
    tensors = {"a": torch.zeros(2, 500, dtype=torch.bfloat16), "b": torch.zeros(3, dtype=torch.float8_e4m3fn)}
    if suffix == ".bin":
        torch.save(tensors, file)
    else:
        save_file(tensors, file)
    found = {header.name: (header.shape, header.dtype, header.place) for header in strict_loading.read_headers(file)}
    place = f" ({file.name})"
    assert found == {"a": ((2, 500), torch.bfloat16, place), "b": ((3,), torch.float8_e4m3fn, place)}
    whole = file.read_bytes()
    for content in (whole[:-1], whole[:-500], whole[:5], b"", b"<html>" * 9):
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=rf"^{file.name} \({len(content):,} bytes\) is damaged or cut short"):
            strict_loading.read_headers(file)
    file.unlink()
    with pytest.raises(WeightsError, match="not a file"):
        strict_loading.read_headers(file)
