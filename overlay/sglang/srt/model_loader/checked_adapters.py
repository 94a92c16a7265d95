"""Adapters (LoRA), of the overlay's models and upstream's: one that would be lost in part is refused when it comes.

Upstream drops tensors of an adapter that it has no place for, some of them without a word. Others it finds out about
when the adapter is first used, and its scheduler ends. Here an adapter is compared, tensor by tensor, with the modules
that the engine adapts: when it is loaded, or, where the server starts with it, as soon as these are made. Of
adapter_config.json upstream reads four keys, later five, and serves an adapter as if the others were not there; here
each that is set must be one that is heeded, or one that changes no answer.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

_FACTOR = re.compile(r"\.lora_(?:embedding_)?([AB])(?:\.weight)?$")
_EXPERT = re.compile(r"\.experts(\.|$)")
_EXPERTS = "experts"

# The keys of adapter_config.json that are heeded, and those that say how the adapter was trained, or what its tensors
# say too. `fan_in_fan_out` is about the layout of the weight that the adapter is beside.
_HARMLESS = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout",
    "lora_ga_config", "megatron_config", "megatron_core", "peft_version", "qalora_group_size", "r", "revision",
    "target_modules", "task_type", "use_rslora", "velora_config",
})  # fmt: skip
# Other ways to begin, such as "pissa", change the model's own weights: the adapter is one of the changed weights.
_HARMLESS_VALUES = {
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal", "mica"),
    "peft_type": ("LORA", "lora"),
}


class AdapterError(ValueError):
    """Name each tensor of an adapter that the engine has no place for, and each key that it does not heed."""


@functools.cache
def check_adapters() -> None:
    """Put the check around what upstream does when it loads adapters, in this process."""
    from sglang.srt.lora import lora
    from sglang.srt.lora.lora_manager import LoRAManager

    if hasattr(lora.LoRAAdapter, "_process_weight"):  # from 0.5.8 on
        lora.LoRAAdapter._process_weight = _noting_dropped(lora.LoRAAdapter._process_weight)
        LoRAManager.load_lora_weights_from_tensors = _checked(LoRAManager.load_lora_weights_from_tensors)
    else:
        lora.LoRAAdapter.initialize_weights = _noting_dropped_of_files(lora.LoRAAdapter.initialize_weights, lora)
    LoRAManager.validate_new_adapter = _checked_config(LoRAManager.validate_new_adapter)
    LoRAManager.load_lora_weights = _checked(LoRAManager.load_lora_weights)
    LoRAManager.init_memory_pool = _checked_at_start(LoRAManager.init_memory_pool)


def _noting_dropped(upstreams: Callable[..., None]) -> Callable[..., None]:
    """Wrap `LoRAAdapter._process_weight`, which keeps a tensor in one of several places, or drops it."""

    @functools.wraps(upstreams)
    def process(self: Any, name: str, loaded_weight: torch.Tensor) -> None:
        with _noted_if_dropped(self, name):
            upstreams(self, name, loaded_weight)

    return process


def _noting_dropped_of_files(upstreams: Callable[..., None], module: Any) -> Callable[..., None]:
    """Wrap `LoRAAdapter.initialize_weights` of 0.5.7, which does so with the tensors of files, one after the other."""

    @functools.wraps(upstreams)
    def initialize(adapter: Any) -> None:
        loader = module.DefaultModelLoader

        class Noting(loader):
            def _get_weights_iterator(self, source: Any) -> Iterator[tuple[str, torch.Tensor]]:
                for name, weight in super()._get_weights_iterator(source):
                    with _noted_if_dropped(adapter, name):  # upstream is through with it, as it asks for the next
                        yield name, weight

        module.DefaultModelLoader = Noting
        try:
            upstreams(adapter)
        finally:
            module.DefaultModelLoader = loader

    return initialize


@contextmanager
def _noted_if_dropped(adapter: Any, name: str) -> Iterator[None]:
    """Note a tensor that an adapter keeps in none of its places by the end of the block."""
    before = _kept(adapter)
    yield
    if _kept(adapter) == before:
        adapter.__dict__.setdefault("dropped_tensors", []).append(name)


def _kept(adapter: Any) -> int:
    layers = sum(len(layer.weights) for layer in adapter.layers)
    return layers + len(adapter.embedding_layers) + len(adapter.added_tokens_embeddings)


def _checked_config(upstreams: Callable[..., None]) -> Callable[..., None]:
    """Wrap `LoRAManager.validate_new_adapter`, which comes before anything of an adapter is kept."""

    @functools.wraps(upstreams)
    def validate(self: Any, lora_config: Any, lora_ref: Any) -> None:
        _refuse(lora_ref.lora_name, list(_config_faults(lora_config.hf_config)))
        upstreams(self, lora_config, lora_ref)

    return validate


def _config_faults(config: Mapping[str, Any]) -> Iterator[str]:
    """Name what an adapter_config.json says that would change the answers, and that the engine does not do."""
    for key, value in config.items():
        off = not value or value == "none"
        if not (off or key in _HARMLESS or value in _HARMLESS_VALUES.get(key, ())):
            yield (
                f"adapter_config.json: {key} is {value!r}, which the engine does not do; "
                "merge the adapter into the model, or train it without"
            )
    if not isinstance(config["r"], int) or config["r"] < 1:
        yield f"adapter_config.json: r must be a whole number from 1 on, not {config['r']!r}"


def _checked(upstreams: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(upstreams)
    def load(self: Any, lora_ref: Any, *args: Any, **kwargs: Any) -> None:
        upstreams(self, lora_ref, *args, **kwargs)
        adapter = self.loras[lora_ref.lora_id]
        if adapter.config.hf_config.get("use_rslora"):  # arXiv:2312.03732; upstream divides by the rank itself
            adapter.scaling = adapter.config.lora_alpha / math.sqrt(adapter.config.r)
        if getattr(self, "memory_pool", None) is not None:
            try:
                _require_fit(self, lora_ref.lora_id, lora_ref.lora_name)
            except AdapterError:
                del self.loras[lora_ref.lora_id], self.configs[lora_ref.lora_id]
                raise

    return load


def _checked_at_start(upstreams: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(upstreams)
    def init_memory_pool(self: Any) -> None:
        upstreams(self)
        for uid, ref in self.lora_refs.items():
            _require_fit(self, uid, ref.lora_name)

    return init_memory_pool


def _require_fit(manager: Any, uid: str, name: str) -> None:
    """Raise AdapterError, a line a tensor, unless the engine has a place for all of an adapter."""
    adapter = manager.loras[uid]
    rank = adapter.config.r
    faults = [f"{tensor}: the engine has no place for it" for tensor in getattr(adapter, "dropped_tensors", [])]
    parameters = [parameter for parameter, _ in manager.base_model.named_parameters()]
    for index, layer in enumerate(adapter.layers):
        if any(f"layers.{index}." in parameter for parameter in parameters):  # else another rank of a pipeline has it
            modules = dict(manager.lora_modules[index])
            if manager.device.type == "cpu":  # upstream adapts experts with kernels for GPUs alone
                modules = {name: module for name, module in modules.items() if _kind(name) != _EXPERTS}
            faults += _layer_faults(layer.weights, modules, functools.partial(_shapes, manager, index, rank))
    for tensor, value in adapter.embedding_layers.items():
        kind = "embed_tokens" if "embed_tokens" in tensor else "lm_head"
        factor = _FACTOR.search(tensor)
        if getattr(manager, f"{kind}_module", None) is None:
            faults.append(f"{tensor}: the engine adapts no {kind} of this model")
        elif factor and value.shape[0 if factor[1] == "A" else 1] != rank:
            faults.append(f"{tensor}: its shape is {tuple(value.shape)}, and adapter_config.json says that r is {rank}")
    _refuse(name, faults)


def _refuse(name: str, faults: list[str]) -> None:
    if faults:
        raise AdapterError(f"the adapter {name} does not fit the model, or the engine:\n  " + "\n  ".join(faults))


def _layer_faults(
    weights: dict[str, torch.Tensor], modules: dict[str, Any], shapes: Callable[[str], dict[str, tuple[int, int]]]
) -> Iterator[str]:
    """Name the tensors of a layer that its adapted `modules` (by their names in the model) do not take.

    Upstream has put those of projections that it has fused into one by now, under the name of that one. It goes by the
    last part of a name: all modules of a layer that share it are one to it.
    """
    there = {_kind(name) for name in modules}
    found: dict[str, dict[str, set[str]]] = {}
    for tensor, value in weights.items():
        module, match = _FACTOR.sub("", tensor), _FACTOR.search(tensor)
        kind = _kind(module)
        if match is None or kind not in there:
            adapted = ", ".join(sorted(there)) or "nothing"
            yield f"{tensor}: the engine has no place for it; of this layer it adapts {adapted}"
            continue
        found.setdefault(kind, {}).setdefault(module, set()).add(match[1])
        if kind != _EXPERTS and value.ndim == 2 and tuple(value.shape) != (room := shapes(kind)[match[1]]):
            yield f"{tensor}: its shape is {tuple(value.shape)}, and the engine has room for {room}"
    for kind, of in found.items():
        if kind == _EXPERTS:
            continue
        if len(of) > 1:
            yield f"{', '.join(sorted(of))}: one module to the engine"
        for module, factors in of.items():
            if len(factors) == 1:
                yield f"{module}: the adapter has its factor {factors.pop()} alone"


def _kind(module: str) -> str:
    """Give the last part of a module's name; all experts of a layer are one module."""
    return _EXPERTS if _EXPERT.search(module) else module.rpartition(".")[2]


def _shapes(manager: Any, layer: int, rank: int, kind: str) -> dict[str, tuple[int, int]]:
    """Give the shapes of both factors for which upstream makes room at a module, of all ranks together.

    The first factors of projections that are fused stand one below the other.
    """
    from sglang.srt.lora.utils import get_hidden_dim

    inputs, outputs = get_hidden_dim(kind, manager.base_hf_config, manager.base_model, layer)
    stacked = manager.memory_pool.get_lora_A_shape(kind, manager.base_model, rank, layer)[1]
    return {"A": (stacked, inputs), "B": (outputs, rank)}
