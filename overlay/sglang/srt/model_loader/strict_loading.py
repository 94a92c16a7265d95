"""Strict weight loading: a tensor that is missing, unknown or unfit is named, and nothing is served with it.

Upstream's loaders skip what they do not know and leave random what is absent.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig

Shapes = Mapping[str, tuple[int, ...]]
Weights = Iterable[tuple[str, torch.Tensor]]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_SINGLE = ((), (1,))  # two shapes of a single value, which upstream's loaders take for each other
_DTYPES = {  # as safetensors names them
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class WeightsError(ValueError):
    """Name each tensor that does not fit a model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """Describe a tensor that a model takes from a checkpoint.

    - `shape`: before any sharding. A single value may be stored with one dimension or with none.
    - `dtypes`: those that it may have; empty for a weight, which has a floating one that `Check.dtype` can hold.
    - `optional`: whether a whole checkpoint may lack it.
    """

    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...] = ()
    optional: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """Describe a tensor of a checkpoint without its values; `place` names the file, or is empty."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | str
    place: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What a model expects of a checkpoint.

    - `expected`: its tensors by name.
    - `dtype`: what config.json declares; None if it declares nothing.
    - `ignored`: beginnings of names that belong to another model, and are dropped.
    - `unchecked`: layers of whose tensors nothing is known, except that there are some; each with the reason.
    - `draft`: the beginning of the names of which a whole checkpoint must have one, if the model is a draft.
    - `tied_head`: the weight of a head that is tied to the embeddings and yet not theirs: it is to be a copy of them.
    - `own`: names of tensors that are the model's own, and not of upstream's; `load_checked` loads them.
    - `fixed`: names of tensors that are quantised while they are loaded. What then stands in their place is laid out
      otherwise and has no loader, so that no update of some weights can bring them again.
    """

    expected: Mapping[str, Expected]
    dtype: torch.dtype | None = None
    ignored: tuple[str, ...] = ()
    unchecked: Mapping[str, str] = field(default_factory=dict)
    draft: str = ""
    tied_head: torch.nn.Parameter | None = None
    own: frozenset[str] = frozenset()
    fixed: frozenset[str] = frozenset()

    def ignores(self, name: str) -> bool:
        """Tell whether a tensor is dropped: another model's, or a constant that old checkpoints hold."""
        return name.startswith(self.ignored) or "rotary_emb." in name

    def fault(self, header: Header) -> str:
        """Say what is wrong with a tensor by itself, or nothing."""
        expected = self.expected.get(header.name)
        if expected is None:
            return "" if header.name.rpartition(".")[0] in self.unchecked else "not a tensor of this model"
        if header.shape != expected.shape and not {header.shape, expected.shape} <= {*_SINGLE}:
            return f"its shape is {header.shape}, not {expected.shape}"
        allowed = expected.dtypes or self.allowed()
        if header.dtype not in allowed:
            return f"its dtype is {_name(header.dtype)}, not {' or '.join(sorted(map(_name, allowed)))}"
        return ""

    def allowed(self) -> tuple[torch.dtype, ...]:
        """List the dtypes of weights: float32, and those whose every value the declared dtype has too."""
        if self.dtype is None:
            return _FLOATS
        if self.dtype not in _FLOATS:
            return (self.dtype,)
        return tuple(
            dtype for dtype in _FLOATS if dtype == torch.float32 or torch.promote_types(dtype, self.dtype) == self.dtype
        )

    def missing(self, names: Iterable[str]) -> list[str]:
        """List what a whole checkpoint of these names lacks, a line each."""
        names = set(names)
        if self.draft and not any(name.startswith(self.draft) for name in names):
            return [f"the checkpoint has no draft ({self.draft}* tensors); serve it without --speculative-algorithm"]
        lacking = [name for name, tensor in self.expected.items() if name not in names and not tensor.optional]
        layers = {name.rpartition(".")[0] for name in names}
        return [
            f"{name}: missing"
            for name in (*lacking, *(f"{layer}.*" for layer in self.unchecked if layer not in layers))
        ]

    def faults(self, headers: Iterable[Header], *, complete: bool) -> list[str]:
        """List what is wrong with tensors, a line each; if they are a `complete` checkpoint, also what it lacks."""
        headers = [header for header in headers if not self.ignores(header.name)]
        lines = [f"{header.name}{header.place}: {fault}" for header in headers if (fault := self.fault(header))]
        counts = Counter(header.name for header in headers)
        for name, times in counts.items():
            if times > 1:
                places = ",".join(header.place for header in headers if header.name == name and header.place)
                lines.append(f"{name}{places}: there {times} times")
        return lines + (self.missing(counts) if complete else [])

    def passed(self, weights: Weights, config: PretrainedConfig) -> Iterator[tuple[str, torch.Tensor]]:
        """Pass on the tensors of a whole checkpoint as they come; then raise WeightsError if it has faults.

        `config` tells where the checkpoint is, so that a fault is named with its file.
        """
        lines: dict[str, str] = {}
        seen: set[str] = set()
        for name, tensor in weights:
            if self.ignores(name):
                continue
            fault = "there twice" if name in seen else self.fault(header_of(name, tensor))
            seen.add(name)
            if fault:
                lines[name] = fault
            else:
                yield name, tensor
        missing = self.missing(seen)
        if lines or missing:
            shards = _shards(config)
            raise refusal([*(f"{name}{shards.get(name, '')}: {fault}" for name, fault in lines.items()), *missing])


def refusal(faults: Iterable[str]) -> WeightsError:
    """Make the error that names the faults of a checkpoint, a line each."""
    return WeightsError("the checkpoint does not fit its config.json:\n  " + "\n  ".join(faults))


def declared_dtype(config: PretrainedConfig) -> torch.dtype | None:
    """Give the dtype that config.json declares for weights, or None."""
    declared = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    if isinstance(declared, str):
        declared = getattr(torch, declared.removeprefix("torch."), None)
    return declared if declared in _FLOATS else None


def name_in_checkpoint(name: str, draft: str) -> str:
    """Give a parameter's name in a checkpoint, where those of a draft's layers begin with `draft`, if that is given."""
    return draft + name.removeprefix("model.") if draft and name.startswith("model.") else name


def header_of(name: str, tensor: torch.Tensor) -> Header:
    """Describe a tensor."""
    return Header(name=name, shape=tuple(tensor.shape), dtype=tensor.dtype)


def read_headers(file: Path) -> list[Header]:
    """Describe the tensors of a checkpoint's file, without reading their values.

    Raises WeightsError, naming the file, if it cannot be read or ends before its last tensor does.
    """
    place = f" ({file.name})"
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  # it is no mapping
                return [
                    Header(
                        name=name,
                        shape=tuple(part.get_shape()),
                        dtype=_DTYPES.get(part.get_dtype(), part.get_dtype()),
                        place=place,
                    )
                    for name, part in slices.items()
                ]
        tensors = torch.load(file, map_location="meta", weights_only=True)
        return [
            Header(name=name, shape=tuple(tensor.shape), dtype=tensor.dtype, place=place)
            for name, tensor in tensors.items()
        ]
    except Exception as error:  # each library has its own
        size = f"{file.stat().st_size:,} bytes" if file.is_file() else "not a file"
        raise WeightsError(f"{file.name} ({size}) is damaged or cut short: {type(error).__name__}: {error}") from error


def _name(dtype: torch.dtype | str) -> str:
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
                shards |= dict.fromkeys(tensors.keys(), f" ({file.name})")
        except SafetensorError:
            continue  # upstream's loader has its own word on such a file
    return shards
