"""The configuration of Qwen3-Windows: Transformers' Qwen3Config under a name of its own, with the windows that it says.

    "architectures": ["Qwen3WindowsForCausalLM"],
    "model_type": "qwen3_windows",
    "use_sliding_window": true,
    "sliding_window": 4096,
    "layer_types": ["sliding_attention", "full_attention", ...]

A layer of "sliding_attention" sees `sliding_window` tokens, its own among them. Without `layer_types`, the layers from
`max_window_layers` on are of that type, as in Transformers.
"""

from sglang.srt.configs.config_keys import Config, Keys, refuse
from sglang.srt.configs.derived_config import DerivedConfig
from sglang.srt.configs.derived_config import settle as settle_derived
from transformers import Qwen3Config

WINDOW = "sliding_attention"


class Qwen3WindowsConfig(DerivedConfig, Qwen3Config):
    """Transformers' configuration; each key that config.json has beside its own is an error."""

    model_type = "qwen3_windows"
    own = Keys(sizes=("sliding_window",), nullable=("sliding_window",), fixed={"use_sliding_window": (False, True)})
    layer_kinds = ("full_attention", WINDOW)

    # From 0.5.13 on, upstream asks any configuration for these two, and keeps the tokens of layers with a window in a
    # pool of their own. Its list of architectures of that kind has others alone.

    @property
    def is_hybrid_swa(self) -> bool:
        """Tell whether any layer has a window."""
        return WINDOW in self.layer_types

    @property
    def hybrid_layer_pattern(self) -> list[int]:
        """List for each layer whether it has a window, 1 or 0."""
        return [int(kind == WINDOW) for kind in self.layer_types]


def settle(config: Qwen3WindowsConfig, said: Config) -> None:
    """Let the configuration object say what config.json says. Raises ValueError naming what it may not say."""
    settle_derived(config, said)
    made = type(config).from_dict(dict(said))
    refuse(
        f"{key} is {getattr(config, key)!r}, and with the server's overrides {getattr(made, key)!r}; name it there too"
        for key in ("layer_types", "sliding_window")
        if getattr(config, key) != getattr(made, key)
    )
    # The engine's kernels take a window of nothing but the token itself for none.
    if config.is_hybrid_swa and (config.sliding_window or 0) < 2:
        refuse([f"sliding_window must be 2 or more for layers of {WINDOW}, not {config.sliding_window!r}"])
