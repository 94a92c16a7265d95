"""A quantised checkpoint is checked by its format: names, shapes and dtypes of what stands for each weight."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.version import Version
from safetensors.torch import save_file
from sglang.srt.layers.quantization.awq import AWQConfig
from sglang.srt.layers.quantization.blockwise_int8 import BlockInt8Config
from sglang.srt.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
from sglang.srt.layers.quantization.fp8 import Fp8Config
from sglang.srt.layers.quantization.gptq import GPTQConfig
from sglang.srt.layers.quantization.modelopt_quant import ModelOptFp4Config, ModelOptFp8Config
from sglang.srt.layers.quantization.w8a8_fp8 import W8A8Fp8Config
from sglang.srt.layers.quantization.w8a8_int8 import W8A8Int8Config
from sglang.srt.managers.io_struct import UpdateWeightFromDiskReqInput
from torch import nn

from engine.harness import RELEASE, ours

strict_loading = ours("model_loader.strict_loading")
quantised_tensors = ours("model_loader.quantised_tensors")

Parts = Mapping[str, tuple[str, tuple[int, ...]]]

# An attention's projection of [96, 256] that is quantised, one that is left as it is, and a norm.
SHAPES = {"l.self_attn.q_proj.weight": (96, 256), "l.mlp.gate.weight": (4, 256), "l.norm.weight": (256,)}
PLAIN = {"l.mlp.gate.weight": ("BF16", (4, 256)), "l.norm.weight": ("BF16", (256,))}
LAYER = "l.self_attn.q_proj"


def compressed(weights: dict[str, object], inputs: dict[str, object] | None, kind: str) -> Any:  # noqa: ANN401
    """Make the configuration of a checkpoint of compressed-tensors."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return CompressedTensorsConfig.from_config(
        {
            "format": kind,
            "ignore": ["l.mlp.gate"],
            "config_groups": {"group_0": group},
            "quant_method": "compressed-tensors",
        }
    )


def experts_only(kind: str, group_size: int) -> SimpleNamespace:
    """Make what is read of upstream's configuration of moe_wna16, which cannot be made without a GPU."""
    return SimpleNamespace(get_name=lambda: "moe_wna16", linear_quant_method=kind, weight_bits=4, group_size=group_size)


FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
INT8 = {**FLOAT8, "type": "int"}
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "dynamic": False, "strategy": "group", "group_size": 128}
NVFP4 = {
    "num_bits": 4,
    "type": "float",
    "symmetric": True,
    "dynamic": False,
    "strategy": "tensor_group",
    "group_size": 16,
}
DYNAMIC = {**FLOAT8, "strategy": "token", "dynamic": True}

# A format: upstream's configuration, and what a checkpoint has for the layer (dtype and shape of each).
FORMATS: dict[str, tuple[Any, Parts]] = {
    "block fp8": (
        Fp8Config.from_config({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}),
        {"weight": ("F8_E4M3", (96, 256)), "weight_scale_inv": ("BF16", (1, 2))},
    ),
    "fp8": (
        Fp8Config.from_config({"quant_method": "fp8", "activation_scheme": "dynamic"}),
        {"weight": ("F8_E4M3", (96, 256)), "weight_scale": ("F32", ())},
    ),
    "fp8, static": (
        Fp8Config.from_config({"quant_method": "fp8", "activation_scheme": "static"}),
        {"weight": ("F8_E4M3", (96, 256)), "weight_scale": ("F32", (1,)), "input_scale": ("F32", (1,))},
    ),
    "modelopt fp8": (
        ModelOptFp8Config.from_config({"quantization": {"quant_algo": "FP8"}}),
        {"weight": ("F8_E4M3", (96, 256)), "weight_scale": ("F32", ()), "input_scale": ("F32", ())},
    ),
    "modelopt nvfp4": (
        ModelOptFp4Config(is_checkpoint_nvfp4_serialized=True, group_size=16, exclude_modules=[]),
        {
            "weight": ("U8", (96, 128)),
            "weight_scale": ("F8_E4M3", (96, 16)),
            "weight_scale_2": ("F32", ()),
            "input_scale": ("F32", ()),
        },
    ),
    "compressed-tensors, float8 by channel": (
        compressed({**FLOAT8, "strategy": "channel"}, DYNAMIC, "float-quantized"),
        {"weight": ("F8_E4M3", (96, 256)), "weight_scale": ("BF16", (96, 1))},
    ),
    "compressed-tensors, float8 by tensor, static": (
        compressed({**FLOAT8, "strategy": "tensor"}, {**FLOAT8, "strategy": "tensor"}, "float-quantized"),
        {"weight": ("F8_E4M3", (96, 256)), "weight_scale": ("F32", (1,)), "input_scale": ("F32", (1,))},
    ),
    "compressed-tensors, int8": (
        compressed({**INT8, "strategy": "channel"}, {**INT8, "strategy": "token", "dynamic": True}, "int-quantized"),
        {"weight": ("I8", (96, 256)), "weight_scale": ("F32", (96, 1))},
    ),
    "compressed-tensors, int4": (
        compressed(INT4, None, "pack-quantized"),
        {"weight_packed": ("I32", (96, 32)), "weight_scale": ("BF16", (96, 2)), "weight_shape": ("I64", (2,))},
    ),
    "compressed-tensors, int4 with zero points": (
        compressed({**INT4, "symmetric": False}, None, "pack-quantized"),
        {
            "weight_packed": ("I32", (96, 32)),
            "weight_scale": ("BF16", (96, 2)),
            "weight_shape": ("I64", (2,)),
            "weight_zero_point": ("I32", (12, 2)),
        },
    ),
    "compressed-tensors, nvfp4": (
        compressed(NVFP4, {**NVFP4, "dynamic": "local"}, "nvfp4-pack-quantized"),
        {
            "weight_packed": ("U8", (96, 128)),
            "weight_scale": ("F8_E4M3", (96, 16)),
            "weight_global_scale": ("F32", (1,)),
            "input_global_scale": ("F32", (1,)),
        },
    ),
    "AWQ": (
        AWQConfig.from_config({"bits": 4, "group_size": 64, "zero_point": True}),
        {"qweight": ("I32", (256, 12)), "qzeros": ("I32", (4, 12)), "scales": ("F16", (4, 96))},
    ),
    "GPTQ": (
        GPTQConfig.from_config({"bits": 4, "group_size": 128, "desc_act": True}),
        {
            "qweight": ("I32", (32, 96)),
            "qzeros": ("I32", (2, 12)),
            "scales": ("F16", (2, 96)),
            "g_idx": ("I32", (256,)),
        },
    ),
    "GPTQ, one group, 8 bits": (
        GPTQConfig.from_config({"bits": 8, "group_size": -1, "desc_act": True}),
        {
            "qweight": ("I32", (64, 96)),
            "qzeros": ("I32", (1, 24)),
            "scales": ("F16", (1, 96)),
            "g_idx": ("I32", (256,)),
        },
    ),
    "experts as AWQ has them": (
        experts_only("awq", 64),
        {"qweight": ("I32", (256, 12)), "qzeros": ("I32", (4, 12)), "scales": ("F16", (4, 96))},
    ),
    "experts as GPTQ has them": (
        experts_only("gptq", 128),
        {"qweight": ("I32", (32, 96)), "qzeros": ("I32", (2, 12)), "scales": ("F16", (2, 96))},
    ),
    "fp8 by channel": (
        W8A8Fp8Config(is_checkpoint_fp8_serialized=True),
        {"weight": ("F8_E4M3", (96, 256)), "weight_scale": ("F32", (96, 1))},
    ),
    "int8 by channel": (W8A8Int8Config(), {"weight": ("I8", (96, 256)), "weight_scale": ("F32", (96, 1))}),
    "int8 by block": (
        BlockInt8Config(True, "dynamic", None, [32, 64]),
        {"weight": ("I8", (96, 256)), "weight_scale_inv": ("F32", (3, 4))},
    ),
}


def model(quant_config: object) -> SimpleNamespace:
    """Make what upstream would build of SHAPES: a fused, quantised projection and an unquantised router."""
    layer = nn.Module()
    layer.qkv_proj, layer.mlp, layer.norm = nn.Module(), nn.Module(), nn.Module()
    layer.mlp.gate = nn.Module()
    layer.qkv_proj.quant_method = SimpleNamespace(quant_config=quant_config)
    layer.mlp.gate.quant_method = type("UnquantizedLinearMethod", (), {})()
    built = nn.Module()
    built.l = layer
    return SimpleNamespace(
        named_modules=built.named_modules,
        quant_config=quant_config,
        config=SimpleNamespace(dtype="bfloat16"),
    )


def write(file: Path, tensors: Parts) -> None:
    """Write a file of zeros in the format of safetensors, which numpy has not all dtypes for."""
    sizes = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I64": 8, "I32": 4, "I8": 1, "U8": 1}
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * sizes[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def faults(quant_config: object, file: Path, tensors: Parts) -> list[str]:
    """List the faults of a checkpoint of these tensors."""
    write(file, tensors)
    check = quantised_tensors.make_check(model(quant_config), SHAPES)
    assert not check.unchecked
    return [*check.faults(strict_loading.read_headers(file), complete=True)]


@pytest.mark.parametrize("name", FORMATS)
def test_a_format(name: str, tmp_path: Path) -> None:
    quant_config, parts = FORMATS[name]
    file = tmp_path / "m.safetensors"
    whole = PLAIN | {f"{LAYER}.{part}": tensor for part, tensor in parts.items()}
    assert faults(quant_config, file, whole) == []
    for part, (dtype, shape) in parts.items():
        tensor = f"{LAYER}.{part}"
        assert faults(quant_config, file, {k: v for k, v in whole.items() if k != tensor}) == [f"{tensor}: missing"]
        wrong = (*shape[:-1], shape[-1] + 1) if shape else (2,)
        [fault] = faults(quant_config, file, whole | {tensor: (dtype, wrong)})
        assert fault.startswith(f"{tensor} (m.safetensors): its shape is {wrong}, not ")
        [fault] = faults(quant_config, file, whole | {tensor: ("U8" if dtype == "I8" else "I8", shape)})
        assert fault.startswith(f"{tensor} (m.safetensors): its dtype is ")
    for unknown in (f"{LAYER}.unheard_of", "l.mlp.gate.weight_scale"):
        assert faults(quant_config, file, whole | {unknown: ("F32", (1,))}) == [
            f"{unknown} (m.safetensors): not a tensor of this model"
        ]
    left = {k: v for k, v in whole.items() if k != "l.norm.weight"}
    assert faults(quant_config, file, left) == ["l.norm.weight: missing"]


if Version("0.5.23") <= RELEASE:  # older layers are not made without a server, GPTQ's not without a GPU

    @pytest.mark.parametrize("name", [name for name in FORMATS if "GPTQ" not in name and "experts" not in name])
    def test_a_format_is_what_upstreams_own_layer_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from sglang.srt.layers.linear import ReplicatedLinear  # which old releases cannot import first

        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device=None: (10, 0))
        quant_config, parts = FORMATS[name]
        if isinstance(quant_config, (ModelOptFp8Config, ModelOptFp4Config)):
            monkeypatch.setattr(quant_config, "exclude_modules", [])
            monkeypatch.setattr(quant_config, "packed_modules_mapping", {}, raising=False)
        layer = ReplicatedLinear(
            256, 96, bias=False, params_dtype=torch.bfloat16, quant_config=quant_config, prefix=LAYER
        )
        expected, unchecked = quantised_tensors.expected_tensors(
            {"l.weight": (96, 256)}, quant_config, lambda name: quant_config
        )
        assert not unchecked
        assert {name: tuple(tensor.shape) for name, tensor in layer.named_parameters()} == {
            name.removeprefix("l."): tensor.shape for name, tensor in expected.items()
        }
        for name, tensor in layer.named_parameters():
            assert tensor.dtype in expected[f"l.{name}"].dtypes
        assert parts.keys() == dict(layer.named_parameters()).keys()


def test_a_group_index_may_be_left_out_where_the_order_is_known(tmp_path: Path) -> None:
    quant_config = GPTQConfig.from_config({"bits": 4, "group_size": 128, "desc_act": False})
    parts = {k: v for k, v in FORMATS["GPTQ"][1].items() if k != "g_idx"}
    whole = PLAIN | {f"{LAYER}.{part}": tensor for part, tensor in parts.items()}
    assert faults(quant_config, tmp_path / "m.safetensors", whole) == []


@pytest.mark.parametrize("quant_config", [Fp8Config(), ModelOptFp8Config(), W8A8Fp8Config()])
def test_all_of_a_checkpoint_is_checked_that_is_quantised_while_it_is_loaded(
    quant_config: object, tmp_path: Path
) -> None:
    whole = PLAIN | {f"{LAYER}.weight": ("BF16", (96, 256))}
    file = tmp_path / "m.safetensors"
    assert faults(quant_config, file, whole) == []
    assert faults(quant_config, file, PLAIN) == [f"{LAYER}.weight: missing"]
    [fault] = faults(quant_config, file, PLAIN | {f"{LAYER}.weight": ("F8_E4M3", (96, 256))})
    assert "its dtype is float8_e4m3fn" in fault


@pytest.mark.parametrize("quant_config", [Fp8Config(), ModelOptFp8Config(), W8A8Fp8Config()])
def test_what_is_quantised_while_it_is_loaded_is_not_updated(
    quant_config: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream's layers then have it transposed, with a scale, and without a loader."""
    from sglang.srt.model_loader import checked_updates, loader

    class Loader(loader.DefaultModelLoader):  # type: ignore[misc]  # upstream's asks the server's arguments
        def _prepare_weights(self, folder: str, *_: object) -> tuple[str, list[str], bool]:
            return folder, [f"{folder}/model.safetensors"], True

    monkeypatch.setattr(loader, "DefaultModelLoader", Loader)
    monkeypatch.setattr(loader, "get_model_loader", lambda config, _: Loader(config))
    served = nn.Module()
    for name, value in vars(model(quant_config)).items():
        object.__setattr__(served, name, value)
    check = quantised_tensors.make_check(served, {f"{LAYER}.weight": (96, 256), "l.norm.weight": (256,)})
    monkeypatch.setattr(checked_updates, "_served", {served: check})
    tensors = {name: torch.zeros(expected.shape, dtype=torch.bfloat16) for name, expected in check.expected.items()}
    headers = [strict_loading.header_of(*item) for item in tensors.items()]
    assert checked_updates._faults_of_part(served, [each for each in headers if each.name == "l.norm.weight"]) == []
    save_file(tensors, tmp_path / "model.safetensors")
    config = SimpleNamespace(revision=None, quantization=None, hf_config=served.config)
    worker = SimpleNamespace(model_runner=SimpleNamespace(model=served), model_config=config)
    request = UpdateWeightFromDiskReqInput(model_path=str(tmp_path), load_format="auto")
    for faults in (
        checked_updates._faults_of_part(served, headers),
        checked_updates._faults_on_disk(SimpleNamespace(tp_worker=worker), request),
    ):
        [fault] = faults
        assert fault.startswith(f"{LAYER}.weight: what was quantised while it was loaded")


def test_scales_of_the_cache_belong_to_a_quantised_attention(tmp_path: Path) -> None:
    shapes = {"l.self_attn.k_proj.weight": (96, 256)}
    check = quantised_tensors.make_check(model(Fp8Config(True, "dynamic")), shapes)
    write(
        tmp_path / "m.safetensors",
        {
            "l.self_attn.k_proj.weight": ("F8_E4M3", (96, 256)),
            "l.self_attn.k_proj.weight_scale": ("F32", ()),
            "l.self_attn.k_proj.k_scale": ("F32", ()),
        },
    )
    assert check.faults(strict_loading.read_headers(tmp_path / "m.safetensors"), complete=True) == []


def test_what_is_not_checked_is_said(tmp_path: Path) -> None:
    unknown = SimpleNamespace(get_name=lambda: "quark")
    check = quantised_tensors.make_check(model(unknown), SHAPES)
    assert check.unchecked == {LAYER: "its format, quark, is not known in full"}
    write(tmp_path / "m.safetensors", {f"{LAYER}.anything": ("F32", (1,)), "l.norm.weight": ("BF16", (1,))})
    assert check.faults(strict_loading.read_headers(tmp_path / "m.safetensors"), complete=True) == [
        "l.norm.weight (m.safetensors): its shape is (1,), not (256,)",
        "l.mlp.gate.weight: missing",
    ]


def test_layers_are_found_under_the_names_that_upstream_gives_them() -> None:
    def tree(*paths: str) -> nn.Module:
        root = nn.Module()
        for path in paths:
            part = root
            for name in path.split("."):
                if not hasattr(part, name):
                    part.add_module(name, nn.Module())
                part = getattr(part, name)
            part.quant_method = SimpleNamespace(quant_config=path)
        return root

    built = tree("fc", "model.layers.0.qkv_proj", "model.layers.0.mlp.experts", "model.layers.1.self_attn.qkv_proj")
    config_of = quantised_tensors.layer_configs(built, None)
    assert config_of("mtp.fc") == "fc"
    assert config_of("mtp.layers.0.self_attn.k_proj") == "model.layers.0.qkv_proj"
    assert config_of("model.layers.0.mlp.experts.3.up_proj") == "model.layers.0.mlp.experts"
    assert config_of("model.layers.0.mlp.shared_expert.up_proj") == "model.layers.0.mlp.experts"
    assert config_of("model.layers.1.self_attn.v_proj") == "model.layers.1.self_attn.qkv_proj"
    with pytest.raises(LookupError):
        config_of("model.layers.7.self_attn.v_proj")
