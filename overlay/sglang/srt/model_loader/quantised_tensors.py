"""What a quantised checkpoint holds: for each format, the tensors that stand for the weight of a linear layer.

Which layers are quantised is upstream's decision, read from the layers that it has built. Names and shapes are those of
upstream's own layers (`create_weights` in `srt/layers/quantization`) before they are sharded or fused.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_loader.strict_loading import Check, Expected, Shapes, declared_dtype
from torch import nn

Tensors = dict[str, Expected]
"""The tensors that stand for one weight: name within the layer to what is expected."""

_FP8, _INT32, _INT8, _UINT8 = (torch.float8_e4m3fn,), (torch.int32,), (torch.int8,), (torch.uint8,)
_SCALES = (torch.float32, torch.bfloat16, torch.float16)

# Parts of a fused layer by their names in a checkpoint, with the name of the whole.
_FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
}


def expected_tensors(
    shapes: Shapes, quant_config: QuantizationConfig | None, config_of: Callable[[str], QuantizationConfig | None]
) -> tuple[dict[str, Expected], dict[str, str]]:
    """List the tensors of a checkpoint, and the layers whose tensors cannot be listed, each with the reason.

    - `shapes`: the tensors of an unquantised checkpoint, name to shape.
    - `quant_config`: the model's, or None.
    - `config_of`: gives what quantises a layer, by its name in the checkpoint: None if nothing does. Raises LookupError
      for a layer that this process does not have.
    """
    expected = {name: Expected(shape=shape) for name, shape in shapes.items()}
    unchecked: dict[str, str] = {}
    if quant_config is None or quantises_while_loading(quant_config):
        return expected, unchecked
    for name, shape in shapes.items():
        layer, _, last = name.rpartition(".")
        if last != "weight" or len(shape) != 2:
            continue
        try:
            config = config_of(layer)
        except LookupError:
            del expected[name]
            unchecked[layer] = "another rank has it"
            continue
        if config is None or quantises_while_loading(config):
            continue
        del expected[name]
        list_tensors = FORMATS.get(config.get_name().replace("-", "_"))
        tensors = list_tensors(config, layer, *shape) if list_tensors else None
        if tensors is None:
            unchecked[layer] = f"its format, {config.get_name()}, is not known in full"
        else:
            expected |= {f"{layer}.{part}": tensor for part, tensor in tensors.items()}
    for name in shapes:  # a checkpoint may have the scales of a quantised cache
        if name.endswith(".k_proj.weight"):
            attention = name.removesuffix("k_proj.weight")
            for scale in ("k_proj.k_scale", "v_proj.v_scale", "k_scale", "v_scale"):
                expected[attention + scale] = replace(_single(), optional=True)
    return expected, unchecked


def quantises_while_loading(config: QuantizationConfig) -> bool:
    """Tell whether the checkpoint itself is not quantised: upstream's configurations say that it is, if they can."""
    return any(
        value is False for name, value in vars(config).items() if re.fullmatch(r"is_checkpoint_\w+_serialized", name)
    )


def layer_configs(model: nn.Module, quant_config: QuantizationConfig | None) -> Callable[[str], Any]:
    """Make `config_of` for a model that upstream has built."""
    layers = dict(model.named_modules())

    @functools.cache  # asked what a checkpoint holds, and again what of it can be updated
    def config_of(name: str) -> QuantizationConfig | None:
        # Upstream drops `self_attn` from names where attention is the layer itself, and `mtp` where a draft begins.
        for found in (name, name.replace(".self_attn", "")):
            for start in (found, found.replace("mtp.", "model.", 1), found.removeprefix("mtp.")):
                path, _, last = start.rpartition(".")
                for candidate in (
                    start,
                    f"{path}.{_FUSED.get(last, last)}",
                    re.sub(r"\.experts\.\d+\.\w+$", ".experts", start),
                    re.sub(r"\.shared_expert\.\w+$", ".experts", start),  # where upstream makes it one more of them
                ):
                    if candidate in layers:
                        method = getattr(layers[candidate], "quant_method", None)
                        if method is None or type(method).__name__.startswith("Unquantized"):
                            return None
                        return getattr(method, "quant_config", quant_config)
        raise LookupError(name)

    return config_of


def _single(dtypes: tuple[torch.dtype, ...] = _SCALES) -> Expected:
    return Expected(shape=(1,), dtypes=dtypes)


def _fp8(config: Any, layer: str, out: int, size: int) -> Tensors | None:
    tensors = {"weight": Expected(shape=(out, size), dtypes=_FP8)}
    if config.weight_block_size is not None:
        tensors["weight_scale_inv"] = _blocks(out, size, config.weight_block_size)
    else:
        tensors["weight_scale"] = _single()
    if config.activation_scheme == "static":
        tensors["input_scale"] = _single()
    return tensors


def _blocks(out: int, size: int, block: Any) -> Expected:
    rounded = getattr(torch, "float8_e8m0fnu", torch.float32)  # scales that are powers of 2
    return Expected(shape=(math.ceil(out / block[0]), math.ceil(size / block[1])), dtypes=(*_SCALES, rounded))


def _w8a8_fp8(config: Any, layer: str, out: int, size: int) -> Tensors | None:
    return {
        "weight": Expected(shape=(out, size), dtypes=_FP8),
        "weight_scale": Expected(shape=(out, 1), dtypes=_SCALES),
    }


def _w8a8_int8(config: Any, layer: str, out: int, size: int) -> Tensors | None:
    return {
        "weight": Expected(shape=(out, size), dtypes=_INT8),
        "weight_scale": Expected(shape=(out, 1), dtypes=_SCALES),
    }


def _blockwise_int8(config: Any, layer: str, out: int, size: int) -> Tensors | None:
    return {
        "weight": Expected(shape=(out, size), dtypes=_INT8),
        "weight_scale_inv": _blocks(out, size, config.weight_block_size),
    }


def _modelopt_fp8(config: Any, layer: str, out: int, size: int) -> Tensors | None:
    return {
        "weight": Expected(shape=(out, size), dtypes=_FP8),
        "weight_scale": _single(),
        "input_scale": _single(),
    }


def _modelopt_fp4(config: Any, layer: str, out: int, size: int) -> Tensors | None:
    tensors = {
        "weight": Expected(shape=(out, size // 2), dtypes=_UINT8),
        "weight_scale": Expected(shape=(out, size // config.group_size), dtypes=_FP8),
        "weight_scale_2": _single(),
        "input_scale": replace(_single(), optional=getattr(config, "is_w4a16", False)),
    }
    if getattr(config, "is_awq", False):
        tensors["pre_quant_scale"] = Expected(shape=(size,), dtypes=_SCALES)
    return tensors


def _groups(config: Any, size: int) -> int:
    return 1 if config.group_size == -1 else math.ceil(size / config.group_size)


def _awq(config: Any, layer: str, out: int, size: int) -> Tensors | None:
    groups, packed = _groups(config, size), out * config.weight_bits // 32
    return {
        "qweight": Expected(shape=(size, packed), dtypes=_INT32),
        "qzeros": Expected(shape=(groups, packed), dtypes=_INT32),
        "scales": Expected(shape=(groups, out), dtypes=_SCALES),
    }


def _gptq(config: Any, layer: str, out: int, size: int) -> Tensors | None:
    groups, bits = _groups(config, size), config.weight_bits
    ordered = getattr(config, "desc_act", False)  # otherwise the order is known
    return {
        "qweight": Expected(shape=(size * bits // 32, out), dtypes=_INT32),
        "qzeros": Expected(shape=(groups, out * bits // 32), dtypes=_INT32),
        "scales": Expected(shape=(groups, out), dtypes=_SCALES),
        "g_idx": Expected(shape=(size,), dtypes=_INT32, optional=not ordered),
    }


def _moe_wna16(config: Any, layer: str, out: int, size: int) -> Tensors | None:
    return (_awq if "awq" in config.linear_quant_method else _gptq)(config, layer, out, size)


def _compressed_tensors(config: Any, layer: str, out: int, size: int) -> Tensors | None:
    schemes = [scheme for target, scheme in config.target_scheme_map.items() if _is_target(target, layer)]
    if not schemes or config.sparsity_scheme_map:
        return None
    weights, inputs = schemes[0]["weights"], schemes[0]["input_activations"]
    kind = _text(schemes[0].get("format") or config.quant_format)
    if kind == "pack-quantized":
        return _packed(weights, out, size)
    if kind == "nvfp4-pack-quantized":
        return {
            "weight_packed": Expected(shape=(out, size // 2), dtypes=_UINT8),
            "weight_scale": Expected(shape=(out, size // (weights.group_size or 16)), dtypes=_FP8),
            "weight_global_scale": _single(),
            "input_global_scale": replace(_single(), optional=inputs is None),
        }
    if kind not in ("float-quantized", "int-quantized", "naive-quantized") or weights.num_bits != 8:
        return None
    dtypes = _FP8 if _text(weights.type) == "float" else _INT8
    strategy = _text(weights.strategy)
    tensors = {"weight": Expected(shape=(out, size), dtypes=dtypes)}
    if strategy == "block":
        tensors["weight_scale"] = _blocks(out, size, weights.block_structure)
    elif strategy in ("tensor", "channel"):
        tensors["weight_scale"] = _single() if strategy == "tensor" else Expected(shape=(out, 1), dtypes=_SCALES)
    else:
        return None
    if inputs is not None and not inputs.dynamic:
        tensors["input_scale"] = _single()
        if not inputs.symmetric:
            tensors["input_zero_point"] = _single((torch.int8, torch.int32, *_SCALES))
    return tensors


def _packed(weights: Any, out: int, size: int) -> Tensors | None:
    """List the tensors of integers of `num_bits`, packed into int32 along the input."""
    if _text(weights.strategy) not in ("channel", "group"):
        return None
    groups = math.ceil(size / weights.group_size) if _text(weights.strategy) == "group" else 1
    tensors = {
        "weight_packed": Expected(shape=(out, math.ceil(size * weights.num_bits / 32)), dtypes=_INT32),
        "weight_scale": Expected(shape=(out, groups), dtypes=_SCALES),
        "weight_shape": Expected(shape=(2,), dtypes=(torch.int64, torch.int32)),
    }
    if not weights.symmetric:
        packed = math.ceil(out * weights.num_bits / 32)
        tensors["weight_zero_point"] = Expected(shape=(packed, groups), dtypes=_INT32)
    if _text(getattr(weights, "actorder", None)) == "group":
        tensors["weight_g_idx"] = Expected(shape=(size,), dtypes=_INT32)
    return tensors


def _is_target(target: str, layer: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), layer) is not None
    return target == "Linear" or layer == target or layer.endswith(f".{target}")


def _text(value: Any) -> str:
    """Write a value that is text in some versions of compressed-tensors, and a member of an enumeration in others."""
    return str(getattr(value, "value", value))


# A format by the name that its configuration gives: what lists the tensors for a weight of [out, size], or None.
FORMATS: dict[str, Callable[[Any, str, int, int], Tensors | None]] = {
    "fp8": _fp8,
    "w8a8_fp8": _w8a8_fp8,
    "w8a8_int8": _w8a8_int8,
    "blockwise_int8": _blockwise_int8,
    "modelopt_fp8": _modelopt_fp8,
    "modelopt_fp4": _modelopt_fp4,
    "awq": _awq,
    "awq_marlin": _awq,
    "gptq": _gptq,
    "gptq_marlin": _gptq,
    "moe_wna16": _moe_wna16,
    "compressed_tensors": _compressed_tensors,
}


def make_check(
    model: nn.Module, shapes: Shapes, ignored: tuple[str, ...] = (), draft: str = "", own: Iterable[str] = ()
) -> Check:
    """Make the check of checkpoints for a model that upstream has built.

    - `shapes`: the tensors that it takes from an unquantised checkpoint, name to shape, before any sharding.
    - `ignored`, `draft`: as in `Check`. A head that is a copy of tied embeddings is ignored too; where upstream has
      built one beside them, its loader is to copy them, which `Check.tied_head` is for.
    - `own`: which of them upstream's model does not have.
    """
    tied_head = None
    tied = getattr(model.config, "tie_word_embeddings", False) and "lm_head.weight" not in shapes
    if tied and not "lm_head.weight".startswith(ignored):  # those that ignore it need no head, or are given one
        ignored, tied_head = (*ignored, "lm_head.weight"), _separate_head(model)
    config_of = layer_configs(model, model.quant_config)
    expected, unchecked = expected_tensors(shapes, model.quant_config, config_of)
    own = frozenset(own)
    quantised = {name.removesuffix(".weight") for name in own if name.endswith(".weight")}
    return Check(
        expected=expected,
        dtype=declared_dtype(model.config),
        ignored=ignored,
        unchecked=unchecked,
        draft=draft,
        tied_head=tied_head,
        own=frozenset(name for name in expected if name in own or name.rpartition(".")[0] in quantised),
        fixed=frozenset(_quantised_while_loading(expected, model.quant_config, config_of)),
    )


def _quantised_while_loading(
    names: Iterable[str], quant_config: QuantizationConfig | None, config_of: Callable[[str], QuantizationConfig | None]
) -> Iterator[str]:
    """List the weights that a checkpoint has as they are and the model has not, by the parameters of `make_check`."""
    if quant_config is None:
        return
    for name in names:
        layer, _, last = name.rpartition(".")
        if last != "weight":
            continue
        try:
            config = config_of(layer)
        except LookupError:
            config = quant_config  # another rank has it
        if config is not None and quantises_while_loading(config):
            yield name


def _separate_head(model: nn.Module) -> nn.Parameter | None:
    """Find the weight of a head that is not the embeddings' own."""
    head = getattr(getattr(model, "lm_head", None), "weight", None)
    tokens = getattr(getattr(getattr(model, "model", None), "embed_tokens", None), "weight", None)
    return head if isinstance(head, nn.Parameter) and head is not tokens else None
