"""Strict weight loading: a tensor that a model lacks, or does not know, stops the server instead of the answers.

Upstream's loaders skip what they do not know and leave random what is absent.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def checked_weights(
    weights: Iterable[tuple[str, torch.Tensor]],
    expected: Mapping[str, tuple[int, ...]],
    config: PretrainedConfig,
    ignored: tuple[str, ...] = (),
    others: bool = False,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass on the tensors that are `expected` (name to shape); then raise ValueError naming each that does not fit.

    - An iterator is a whole checkpoint: each missing tensor is named, and a tensor must have the dtype that config.json
      declares, or float32. A list, as a trainer hands over, is a part of one: any floating dtype will do.
    - Tensors whose name begins with one of `ignored` are dropped.
    - With `others`, those not expected are passed on too: the names of a quantised checkpoint are its format's.
    """
    whole = not isinstance(weights, list)
    declared = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    if isinstance(declared, str):
        declared = getattr(torch, declared.removeprefix("torch."), None)
    dtypes = {torch.float32, declared} if whole and declared in _FLOATS else set(_FLOATS)
    problems: dict[str, str] = {}
    seen = set()
    for name, tensor in weights:
        if name.startswith(ignored) or "rotary_emb." in name:  # the latter are constants that old checkpoints hold
            continue
        seen.add(name)
        if name not in expected:
            if others:
                yield name, tensor
            else:
                problems[name] = "not a tensor of this model"
        elif tuple(tensor.shape) != expected[name]:
            problems[name] = f"its shape is {tuple(tensor.shape)}, not {expected[name]}"
        elif tensor.dtype not in dtypes:
            problems[name] = f"its dtype is {_name(tensor.dtype)}, not {' or '.join(sorted(map(_name, dtypes)))}"
        else:
            yield name, tensor
    if whole:
        problems |= {name: "missing" for name in expected if name not in seen}
    if problems:
        shards = _shards(config)
        lines = [f"{name}{shards.get(name, '')}: {problem}" for name, problem in problems.items()]
        raise ValueError("the checkpoint does not fit its config.json:\n  " + "\n  ".join(lines))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shards(config: PretrainedConfig) -> dict[str, str]:
    """Say of each tensor in the checkpoint's safetensors files which file it is in."""
    path = getattr(config, "_name_or_path", "") or ""
    folder = Path(path)
    if not folder.is_dir():
        cached = try_to_load_from_cache(path, "config.json") if path.count("/") == 1 else None
        if not isinstance(cached, str):
            return {}
        folder = Path(cached).parent
    shards = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as tensors:
                shards |= dict.fromkeys(tensors.keys(), f" ({file.name})")  # it is no mapping
        except SafetensorError:
            continue  # upstream's loader has its own word on such a file
    return shards
