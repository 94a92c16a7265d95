"""What quantises a checkpoint to FP8 by blocks: its layout, how exact it is, and that strict loading takes it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from overlay_tools.errors import CheckpointError
from reference.cases import DATA, read_config
from reference.checkpoints import change_tensors, write_config
from reference.fp8 import dequantise, dequantise_weight, quantise, quantise_weight
from reference.fp8_truth import round_groups
from safetensors.torch import load_file, save_file
from sglang.srt.layers.quantization.fp8 import Fp8Config
from sglang.srt.layers.quantization.utils import is_layer_skipped

from engine.harness import ours

TRAINED = DATA / "qwen3-next-ext"
INDEX = "model.safetensors.index.json"
Q, EXPERT = "model.layers.0.self_attn.q_proj", "model.layers.10.mlp.experts.3.down_proj"
SETTINGS = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate", "model.layers.0.self_attn.q_norm"],
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Write a checkpoint of two shards, with one layer that ends inside of a block."""
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "model.embed_tokens.weight": (200, 300),
        f"{Q}.weight": (200, 300),
        "model.layers.0.self_attn.q_norm.weight": (100,),
        "model.layers.0.mlp.gate.weight": (4, 300),
        "model.layers.0.mlp.gate.e_score_correction_bias": (4,),
        f"{EXPERT}.weight": (256, 128),
        "model.norm.weight": (300,),
        "lm_head.weight": (200, 300),
    }
    tensors = {name: torch.empty(shape).normal_(generator=draw) for name, shape in shapes.items()}
    folder = write_config(tmp_path / "made", {"model_type": "any", "dtype": "bfloat16"})
    (folder / "tokenizer.json").write_text("{}")
    for i, names in enumerate((list(tensors)[:3], list(tensors)[3:])):
        save_file({name: tensors[name].to(torch.bfloat16) for name in names}, folder / f"part-{i}.safetensors")
    change_tensors(folder, lambda tensors: tensors)  # writes the index
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a checkpoint."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_the_layout_is_that_of_the_released_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    before, out = content(checkpoint), tmp_path / "out"
    assert quantise(checkpoint, out) == [f"{Q}", f"{EXPERT}"]
    assert content(checkpoint) == before
    assert read_config(out) == {"model_type": "any", "dtype": "bfloat16", "quantization_config": SETTINGS}
    assert content(out).keys() == before.keys()
    assert content(out)["tokenizer.json"] == before["tokenizer.json"]
    plain, made = tensors_of(checkpoint), tensors_of(out)
    assert made.keys() == plain.keys() | {f"{Q}.weight_scale_inv", f"{EXPERT}.weight_scale_inv"}
    for layer, scales in ((Q, (2, 3)), (EXPERT, (2, 1))):
        weight, scale = made.pop(f"{layer}.weight"), made.pop(f"{layer}.weight_scale_inv")
        assert (weight.dtype, weight.shape) == (torch.float8_e4m3fn, plain.pop(f"{layer}.weight").shape)
        assert (scale.dtype, scale.shape) == (torch.float32, scales)
    assert {name: tensor.dtype for name, tensor in made.items()} == dict.fromkeys(plain, torch.bfloat16)
    assert all(torch.equal(made[name], plain[name]) for name in plain)


def test_tensors_stay_in_their_shards_and_the_index_names_them(checkpoint: Path, tmp_path: Path) -> None:
    quantise(checkpoint, tmp_path / "out")
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    before = json.loads((checkpoint / INDEX).read_text())["weight_map"]
    scales = {f"{name}_scale_inv": before[name] for name in (f"{Q}.weight", f"{EXPERT}.weight")}
    assert index["weight_map"] == before | scales
    for shard in ("part-0.safetensors", "part-1.safetensors"):
        held = load_file(tmp_path / "out" / shard)
        assert held.keys() == {name for name, file in index["weight_map"].items() if file == shard}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors_of(tmp_path / "out").values())


def test_a_checkpoint_of_one_file_gets_no_index(checkpoint: Path, tmp_path: Path) -> None:
    one = write_config(tmp_path / "one", read_config(checkpoint))
    save_file(tensors_of(checkpoint), one / "model.safetensors")
    quantise(one, tmp_path / "out")
    assert content(tmp_path / "out").keys() == {"config.json", "model.safetensors"}


def test_each_value_is_within_half_a_step() -> None:
    """A step of e4m3 is an eighth of a value's power of 2, and never less than 2**-9."""
    draw = torch.Generator().manual_seed(1)
    weight = torch.empty(300, 500).normal_(generator=draw) * torch.logspace(-6, 3, 500)  # small and large in a block
    values, scales = quantise_weight(weight)
    of_each = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[:300, :500]
    error = (dequantise_weight(values, scales) - weight).abs()
    assert (error <= torch.maximum(weight.abs() / 16, of_each / 1024) * (1 + 1e-6)).all()
    assert error.max() > 0
    for i in range(3):
        for j in range(4):
            block = weight[128 * i : 128 * i + 128, 128 * j : 128 * j + 128].abs().max()
            assert scales[i, j] == block / 448
            assert values[128 * i : 128 * i + 128, 128 * j : 128 * j + 128].float().abs().max() == 448


def test_a_block_of_zeros_stays_one() -> None:
    weight = torch.zeros(256, 128)
    weight[:128] = 3.0
    values, scales = quantise_weight(weight)
    assert scales[1, 0] == 1
    assert torch.allclose(dequantise_weight(values, scales), weight, rtol=1e-6, atol=0)


def test_what_is_dequantised_is_quantised_to_the_same_again(checkpoint: Path, tmp_path: Path) -> None:
    layers = quantise(checkpoint, tmp_path / "quantised")
    assert sorted(dequantise(tmp_path / "quantised", tmp_path / "plain")) == sorted(layers)
    assert read_config(tmp_path / "plain") == read_config(checkpoint)
    plain = tensors_of(tmp_path / "plain")
    assert {name: tensor.shape for name, tensor in plain.items()} == {
        name: tensor.shape for name, tensor in tensors_of(checkpoint).items()
    }
    assert plain[f"{Q}.weight"].dtype == torch.float32
    quantise(tmp_path / "plain", tmp_path / "again")
    once, again = (tensors_of(tmp_path / name) for name in ("quantised", "again"))
    assert all(torch.equal(once[name].float(), again[name].float()) for name in once if "scale" not in name)
    assert all(torch.allclose(once[name], again[name], rtol=1e-6) for name in once if "scale" in name)


def test_inputs_are_rounded_by_groups_of_128() -> None:
    draw = torch.Generator().manual_seed(2)
    values = torch.empty(3, 5, 256).normal_(generator=draw)
    values[..., 128:] *= 1e4
    error = (round_groups(values) - values).abs()
    largest = values.abs().unflatten(-1, (2, 128)).amax(-1).repeat_interleave(128, -1)
    assert (error <= torch.maximum(values.abs() / 16, largest / 448 / 1024) * (1 + 1e-6)).all()
    assert round_groups(values.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(round_groups(torch.zeros(2, 128)), torch.zeros(2, 128))


def test_the_layers_of_qwen3_next_are_those_of_its_release(tmp_path: Path) -> None:
    layers = set(quantise(TRAINED, tmp_path / "out"))
    kept = read_config(tmp_path / "out")["quantization_config"]["modules_to_not_convert"]
    of_each = ("input_layernorm", "mlp.gate", "mlp.shared_expert_gate", "post_attention_layernorm")
    attention = ("self_attn.k_norm", "self_attn.q_norm")
    linear = tuple(f"linear_attn.{part}" for part in ("A_log", "conv1d", "dt_bias", "in_proj_ba", "norm"))
    assert set(kept) == {
        "lm_head",
        "head_adapter.down",
        "head_adapter.up",
        *(f"model.layers.{i}.{part}" for i in range(6) for part in of_each + (attention if i in (2, 5) else linear)),
        *(f"mtp.layers.0.{part}" for part in of_each + attention),
        *(f"mtp.{part}" for part in ("fc", "norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")),
    }
    assert len(kept) == len(set(kept))
    assert {re.sub(r"\d+", "N", layer) for layer in layers} == {
        *(f"model.layers.N.linear_attn.{part}" for part in ("in_proj_qkvz", "out_proj")),
        *(
            f"{start}.layers.N.{part}_proj"
            for start in ("model", "mtp")
            for part in (
                *(f"self_attn.{of}" for of in "qkvo"),
                *(f"mlp.{of}.{part}" for of in ("experts.N", "shared_expert") for part in ("gate", "up", "down")),
            )
        ),
    }


def test_strict_loading_takes_what_was_made(tmp_path: Path) -> None:
    quantise(TRAINED, tmp_path / "out")
    settings = read_config(tmp_path / "out")["quantization_config"]
    quant_config = Fp8Config.from_config(settings)
    assert quant_config.is_checkpoint_fp8_serialized

    def config_of(layer: str) -> Fp8Config | None:
        """Tell what upstream quantises: linear layers that are not to be left out. An embedding is none."""
        skipped = layer == "model.embed_tokens" or is_layer_skipped(layer, quant_config.ignored_layers)
        return None if skipped else quant_config

    config = ours("configs.qwen3_next_ext").Qwen3NextExtConfig(**read_config(tmp_path / "out"))
    model, draft = ours("models.qwen3_next_ext"), ours("models.qwen3_next_ext_mtp")
    shapes = model.Qwen3NextExtForCausalLM.checkpoint_shapes(config)
    shapes = {**shapes, **draft.Qwen3NextExtForCausalLMMTP.checkpoint_shapes(config)}
    expected, unchecked = ours("model_loader.quantised_tensors").expected_tensors(shapes, quant_config, config_of)
    assert not unchecked
    strict_loading = ours("model_loader.strict_loading")
    check = strict_loading.Check(expected=expected, dtype=strict_loading.declared_dtype(config))
    headers = [
        header for file in (tmp_path / "out").glob("*.safetensors") for header in strict_loading.read_headers(file)
    ]
    assert check.faults(headers, complete=True) == []
    without = [header for header in headers if header.name != "mtp.layers.0.mlp.experts.0.up_proj.weight_scale_inv"]
    assert check.faults(without, complete=True) == ["mtp.layers.0.mlp.experts.0.up_proj.weight_scale_inv: missing"]


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def key_twice(folder: Path) -> None:
    (folder / "config.json").write_text('{"vocab_size": 260, "vocab_size": 261}')


def quantised_config(folder: Path) -> None:
    write_config(folder, {**read_config(folder), "quantization_config": {"quant_method": "awq"}})


def cut(folder: Path) -> None:
    (folder / "part-1.safetensors").write_bytes((folder / "part-1.safetensors").read_bytes()[:-1])


def absent(folder: Path) -> None:
    (folder / "part-1.safetensors").unlink()


def no_map(folder: Path) -> None:
    (folder / INDEX).write_text("{}")


def no_weights(folder: Path) -> None:
    for file in [*folder.glob("*.safetensors"), folder / INDEX]:
        file.unlink()


def set_weight(weight: torch.Tensor) -> Callable[[Path], None]:
    """Make what gives the last layer another weight: the other shard is converted before."""
    return lambda folder: change_tensors(folder, lambda tensors: tensors | {f"{EXPERT}.weight": weight}, "part-1*")


def other_names(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {name.replace("_proj", ""): tensor for name, tensor in tensors.items()})


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config.json": (no_config, r"config\.json cannot be read"),
    "a key twice": (key_twice, r"config\.json cannot be read: `vocab_size` is there twice"),
    "quantised, by its config.json": (quantised_config, r"config\.json: it is quantised already"),
    "quantised, by its tensors": (
        set_weight(torch.zeros(8, 8).to(torch.float8_e4m3fn)),
        rf"{re.escape(EXPERT)}\.weight is of float8_e4m3fn: the checkpoint is quantised already",
    ),
    "packed": (set_weight(torch.zeros(8, 8, dtype=torch.int32)), r"is of int32: the checkpoint is quantised already"),
    "not finite": (set_weight(torch.full((8, 8), torch.nan)), rf"{re.escape(EXPERT)}\.weight has values that are not"),
    "of another shape": (set_weight(torch.zeros(2, 8, 8)), r"has 3 dimensions, not 2"),
    "cut short": (cut, r"part-1\.safetensors cannot be read"),
    "a shard is absent": (absent, r"part-1\.safetensors cannot be read"),
    "an index of nothing": (no_map, rf"{re.escape(INDEX)}: weight_map must"),
    "no weights": (no_weights, r"has no weight shards"),
    "other names": (other_names, r"has no layer that could be quantised"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_checkpoint_that_cannot_be_quantised_leaves_nothing_behind(
    name: str, checkpoint: Path, tmp_path: Path
) -> None:
    spoil, said = FAULTS[name]
    spoil(checkpoint)
    with pytest.raises(CheckpointError, match=said) as caught:
        quantise(checkpoint, tmp_path / "out")
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


def test_nothing_is_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    before = content(checkpoint)
    with pytest.raises(CheckpointError, match="is not an empty folder"):
        quantise(checkpoint, checkpoint)
    assert content(checkpoint) == before
    with pytest.raises(CheckpointError, match="There is no folder"):
        quantise(checkpoint, tmp_path / "no" / "out")
    (tmp_path / "out").mkdir()
    quantise(checkpoint, tmp_path / "out")
    with pytest.raises(CheckpointError, match="it is quantised already"):
        quantise(tmp_path / "out", tmp_path / "twice")
