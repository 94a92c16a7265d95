"""Checkpoints quantised to FP8 by blocks, in the layout of Qwen3-Next-80B-A3B-Instruct-FP8 and DeepSeek-V3.

    python tests/reference/fp8.py CHECKPOINT OUT

CHECKPOINT is unquantised; it stays as it is, and OUT becomes a quantised copy. In place of the weight of each layer
that upstream multiplies in FP8, OUT has `weight` in float8_e4m3fn and `weight_scale_inv` in float32, a scale for each
block of 128 x 128 values: their products are the weight. All else is copied: embeddings, head, norms, convolutions,
routers, small projections and whatever else the model has beside the layers of LAYERS.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2] / name) for name in ("tests", "ci")]

import torch
from overlay_tools.errors import CheckpointError
from overlay_tools.user_files import parse_json
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import functional

BLOCK = 128  # rows and columns of a weight that share a scale
LARGEST = torch.finfo(torch.float8_e4m3fn).max  # 448

# The layers that are quantised, by the last parts of their names.
LAYERS = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj"}  # attention
    | {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"}  # latent attention
    | {"in_proj_qkvz", "out_proj"}  # linear attention
    | {"gate_proj", "up_proj", "down_proj"}  # experts, and MLPs without
)
_LAYER = re.compile(rf"((?:\w+\.)*layers\.\d+\.(?:\w+\.)*(?:{'|'.join(sorted(LAYERS))}))\.weight")
_SCALE = "_scale_inv"
_INDEX = "model.safetensors.index.json"
_WHOLE = "Download the checkpoint again: it is not whole."
_UNNAMED = ("model.embed_tokens", "model.norm")  # in the released checkpoints, whose readers look for linear layers

Tensors = dict[str, torch.Tensor]


def quantise(checkpoint: Path, out: Path) -> list[str]:
    """Write a quantised copy of a checkpoint into the new or empty folder `out`, and list the layers quantised.

    Raises CheckpointError, and leaves nothing behind, if `checkpoint` is not a whole one, is quantised already, or has
    none of LAYERS, if a weight has values that are not finite, and if there is something at `out`.
    """
    config = _read(checkpoint / "config.json")
    if said := [key for key in ("quantization_config", "compression_config") if config.get(key)]:
        raise CheckpointError(
            f"{checkpoint / 'config.json'}: it is quantised already ({said[0]}).",
            hint="Quantise the checkpoint that it was made from.",
        )
    done: list[str] = []
    left: set[str] = set()

    def converted(tensors: Tensors) -> Tensors:
        found: Tensors = {}
        for name, tensor in tensors.items():
            layer = _LAYER.fullmatch(name)
            if layer is None:
                found[name] = tensor
                left.add(name.removesuffix(".weight").removesuffix(".e_score_correction_bias"))
                continue
            _check_weight(name, tensor)
            found[name], found[name + _SCALE] = quantise_weight(tensor)
            done.append(layer[1])
        return found

    def described() -> dict[str, Any]:
        if not done:
            raise CheckpointError(
                f"{checkpoint} has no layer that could be quantised, as {', '.join(sorted(LAYERS))}.",
                hint="Name a checkpoint with the tensors of Qwen3-Next's, DeepSeek-V3's or a similar model's.",
            )
        settings = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": sorted(left.difference(_UNNAMED)),
            "quant_method": "fp8",
            "weight_block_size": [BLOCK, BLOCK],
        }
        return config | {"quantization_config": settings}

    _copy(checkpoint, out, converted, described)
    return done


def dequantise(checkpoint: Path, out: Path) -> list[str]:
    """Write what `quantise` made into the new or empty folder `out`, unquantised, and list the layers that were.

    Their weights are in float32 there: products of weight and scale.
    """
    config = _read(checkpoint / "config.json")
    done: list[str] = []

    def converted(tensors: Tensors) -> Tensors:
        found = {name: tensor for name, tensor in tensors.items() if not name.endswith(_SCALE)}
        for name in tensors.keys() - found.keys():
            weight = name.removesuffix(_SCALE)
            found[weight] = dequantise_weight(tensors[weight], tensors[name])
            done.append(weight.removesuffix(".weight"))
        return found

    _copy(
        checkpoint,
        out,
        converted,
        lambda: {key: value for key, value in config.items() if key != "quantization_config"},
    )
    return done


def quantise_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise a weight [out, in]: give it in float8_e4m3fn, and its scales [out / 128, in / 128], rounded up.

    The largest value of each block becomes the largest of the format.
    """
    blocks = _in_blocks(weight.float())
    scales = blocks.abs().amax(dim=(1, 3)) / LARGEST
    scales = torch.where(scales > 0, scales, 1.0)
    values = (blocks / scales[:, None, :, None]).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return _out_of_blocks(values, weight.shape), scales


def dequantise_weight(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Give a quantised weight [out, in] in float32."""
    return _out_of_blocks(_in_blocks(weight.float()) * scales.float()[:, None, :, None], weight.shape)


def _in_blocks(weight: torch.Tensor) -> torch.Tensor:
    """Give a weight [out, in] as [blocks, 128, blocks, 128], with zeros after its ends."""
    out, size = weight.shape
    padded = functional.pad(weight, (0, -size % BLOCK, 0, -out % BLOCK))
    return padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))


def _out_of_blocks(blocks: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return blocks.flatten(2, 3).flatten(0, 1)[: shape[0], : shape[1]].contiguous()


def _check_weight(name: str, weight: torch.Tensor) -> None:
    if not weight.is_floating_point() or weight.element_size() == 1:
        raise CheckpointError(
            f"{name} is of {str(weight.dtype).removeprefix('torch.')}: the checkpoint is quantised already.",
            hint="Quantise the checkpoint that it was made from.",
        )
    if weight.ndim != 2 or not weight.isfinite().all():
        what = f"has {weight.ndim} dimensions, not 2" if weight.ndim != 2 else "has values that are not finite"
        raise CheckpointError(f"{name} {what}.", hint="Look at how the checkpoint was made.")


def _copy(
    checkpoint: Path, out: Path, convert: Callable[[Tensors], Tensors], config: Callable[[], Mapping[str, Any]]
) -> None:
    """Write a copy of a checkpoint, each shard converted, and then its config.json; other files are copied."""
    out = out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CheckpointError(f"{out} exists, and is not an empty folder.", hint="Remove it, or name another OUT.")
    if not out.parent.is_dir():
        raise CheckpointError(f"There is no folder {out.parent}.", hint="Make it, or name an OUT elsewhere.")
    shards = sorted(checkpoint.glob("*.safetensors"))
    indexed = (checkpoint / _INDEX).exists()
    if indexed:
        weight_map = _read(checkpoint / _INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise CheckpointError(f"{checkpoint / _INDEX}: weight_map must map tensors to shards.", hint=_WHOLE)
        shards = [checkpoint / name for name in sorted(set(weight_map.values()))]
    if not shards:
        raise CheckpointError(f"{checkpoint} has no weight shards (*.safetensors).", hint="Convert its weights.")
    index: dict[str, str] = {}
    size = 0
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".fp8-") as temporary:
        part = Path(temporary, "part")
        part.mkdir()
        for shard in shards:
            tensors = convert(_load(shard))
            save_file(tensors, part / shard.name, metadata={"format": "pt"})
            index |= dict.fromkeys(tensors, shard.name)
            size += sum(tensor.nbytes for tensor in tensors.values())
        if indexed:
            _write(part / _INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))})
        _write(part / "config.json", config())
        for file in checkpoint.iterdir():
            if file.is_file() and file.suffix != ".safetensors" and file.name not in ("config.json", _INDEX):
                shutil.copy(file, part / file.name)
        part.rename(out)


def _load(shard: Path) -> Tensors:
    try:
        return dict(load_file(shard))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{shard} cannot be read: {error}.", hint=_WHOLE) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read: {error}.", hint="Name the folder of a whole checkpoint."
        ) from None


def _write(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Write a copy of a checkpoint that is quantised to FP8 by blocks.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    try:
        done = quantise(arguments.checkpoint, arguments.out)
    except CheckpointError as error:
        parser.exit(1, f"error: {error}\n  {error.hint}\n")
    print(f"{arguments.out}: {len(done):,} layers are quantised, all else is as in {arguments.checkpoint}")


if __name__ == "__main__":
    main()
