"""What the CPU engine is known to answer rightly; the rest is refused when a server starts, by its name.

Upstream runs many models on a CPU that it answers wrongly without a word: its attention takes no notice of what a layer
asks for, or a branch for CPUs computes something else. So a model of upstream's is served only if it stands here, which
takes a comparison with Transformers' model of that name. The overlay's models are compared by their own tests.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib.metadata import version
from typing import Any

from packaging.version import Version

SWITCH = "SGLANG_OVERLAY_ALLOW_UNPROVEN_ON_CPU"
"""The environment variable that, set to 1, lets a server start all the same."""

ARCHITECTURES: Mapping[str, str] = {
    "ArceeForCausalLM": "0.5.7",
    "CohereForCausalLM": "0.5.17",
    "DeepseekV2ForCausalLM": "0.5.23",
    "DeepseekV3ForCausalLM": "0.5.23",
    "GPT2LMHeadModel": "0.5.7",
    "Gemma2ForCausalLM": "0.5.13",
    "Gemma3ForCausalLM": "0.5.7",
    "Glm4ForCausalLM": "0.5.17",
    "GraniteForCausalLM": "0.5.7",
    "LlamaForCausalLM": "0.5.7",
    "MistralForCausalLM": "0.5.7",
    "MixtralForCausalLM": "0.5.7",
    "Olmo2ForCausalLM": "0.5.7",
    "OlmoForCausalLM": "0.5.7",
    "OlmoeForCausalLM": "0.5.7",
    "Phi3ForCausalLM": "0.5.7",
    "Qwen2ForCausalLM": "0.5.7",
    "Qwen2MoeForCausalLM": "0.5.7",
    "Qwen3ForCausalLM": "0.5.7",
    "Qwen3MoeForCausalLM": "0.5.7",
    "Qwen3NextForCausalLM": "0.5.7",
    "StableLmForCausalLM": "0.5.7",
    "Starcoder2ForCausalLM": "0.5.7",
}
"""Upstream's architectures, each with the first release in which it is right, of those that are compared."""

WINDOWED = ("Gemma2ForCausalLM", "Gemma3ForCausalLM")
"""Those of them that keep to the window of config.json; upstream's others attend to all tokens."""

SCALED: Mapping[str, Collection[str]] = {
    "DeepseekV2ForCausalLM": ("yarn",),
    "DeepseekV3ForCausalLM": ("yarn",),
    "LlamaForCausalLM": ("linear", "llama3", "yarn"),
    "MistralForCausalLM": ("yarn",),
    "Qwen2ForCausalLM": ("yarn",),
    "Qwen3ForCausalLM": ("yarn",),
    "Qwen3MoeForCausalLM": ("yarn",),
}
"""How each of them may scale its rotary positions. Upstream computes some for no model as Transformers does (`dynamic`,
`longrope`), and of some models none."""

_NATIVE = ("torch_native",)
OPTIONS: Mapping[str, Collection[Any]] = {
    "attention_backend": _NATIVE,
    "prefill_attention_backend": _NATIVE,
    "decode_attention_backend": _NATIVE,
    "kv_cache_dtype": ("auto",),
    "enable_dp_attention": (False,),
    "ep_size": (1,),
    "pp_size": (1,),
}
"""Arguments of the server with all values that are known to be right, besides that it is left to upstream."""

_log = logging.getLogger(__name__)


class UnprovenError(RuntimeError):
    """Name what the CPU engine is not known to answer rightly with."""


def refuse_model(resolve: Callable[[Any], tuple[type, str]]) -> Callable[[Any], tuple[type, str]]:
    """Wrap ``get_model_architecture``, which finds the class that serves a configuration, and its name.

    A draft is left alone: what it proposes is verified.

    :raises UnprovenError: if the model neither stands in ARCHITECTURES nor is one of an overlay's, is quantised, has a
        window and does not stand in WINDOWED, or scales its rotary positions as SCALED does not say of it.
    """

    @functools.wraps(resolve)
    def call(model_config: Any) -> tuple[type, str]:
        found, name = resolve(model_config)
        if not model_config.is_draft_model:
            quantised = getattr(model_config, "quantization", None)
            own = _is_claimed(name)  # whose configuration says itself what it takes
            window = None if own or name in WINDOWED else _window(model_config)
            scalings = set() if own else _scalings(model_config) - {*SCALED.get(name, ())}
            unproven = {
                name: not is_proven(name),
                f"sliding_window {window}": window,
                f"quantization {quantised}": quantised,
                **{f"rope_type {kind}": True for kind in sorted(scalings)},
            }
            _refuse(what for what, so in unproven.items() if so)
        return found, name

    return call


def refuse_options(start: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``Scheduler.__init__``, of the process that computes.

    :raises UnprovenError: if an argument has a value that does not stand in OPTIONS.
    """

    @functools.wraps(start)
    def call(self: Any, server_args: Any, *args: Any, **kwargs: Any) -> None:
        given = {name: getattr(server_args, name, None) for name in OPTIONS}
        _refuse(
            f"--{name.replace('_', '-')} {value}"
            for name, value in given.items()
            if value is not None and value not in OPTIONS[name]
        )
        start(self, server_args, *args, **kwargs)

    return call


def is_proven(architecture: str) -> bool:
    """Tell whether a model is right in this release: it stands in ARCHITECTURES, or an overlay has claimed its name."""
    since = ARCHITECTURES.get(architecture)
    if since is not None and Version(version("sglang")) >= Version(since):
        return True
    return _is_claimed(architecture)


def _is_claimed(architecture: str) -> bool:
    """Tell whether a model is an overlay's, or a plugin's."""
    import sglang

    return ("architecture", architecture) in getattr(sglang, "overlay_claims", {})


def _window(model_config: Any) -> int | None:
    """Give the window that config.json asks for; None where it has none, or one that holds all tokens."""
    config = model_config.hf_text_config
    window: int | None = getattr(config, "sliding_window", None)
    asked = window is not None and getattr(config, "use_sliding_window", True) and window < model_config.context_len
    return window if asked else None


def _scalings(model_config: Any) -> set[str]:
    """Give how config.json scales rotary positions, of each kind of layers if it says so; nothing where it does not."""
    config = model_config.hf_text_config
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    said = [found, *(value for value in found.values() if isinstance(value, Mapping))]
    return {str(each.get("rope_type") or each.get("type") or "default") for each in said} - {"default", "mrope"}


def _refuse(unproven: Iterable[str]) -> None:
    if not (names := ", ".join(unproven)):
        return
    said = f"{names}: not known to be right on the CPU engine in sglang {version('sglang')}, and answers may be wrong"
    if os.environ.get(SWITCH) != "1":
        raise UnprovenError(f"{said}; to serve it all the same, set {SWITCH}=1")
    _log.warning("%s; %s=1 lets it serve", said, SWITCH)
