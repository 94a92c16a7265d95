"""What config.json may say to Qwen3-Next-Ext-VL."""

from collections.abc import Mapping
from typing import Any

from sglang.srt.configs.config_keys import Config, Keys, key_problems, refuse
from sglang.srt.configs.qwen3_next_ext_keys import KEYS as TEXT
from sglang.srt.configs.qwen3_next_ext_keys import check as check_text
from sglang.srt.configs.qwen3_next_ext_keys import settle as settle_text

VISION = Keys(
    read=("layer_norm_eps", "max_pixels", "min_pixels", "rope_theta"),
    sizes=(
        "hidden_size", "intermediate_size", "merge_size", "num_attention_heads", "num_hidden_layers", "patch_size",
    ),
)  # fmt: skip
KEYS = Keys(
    read=("image_token_id",),
    nullable=("text_config", "vision_config"),
    fixed={"tie_word_embeddings": (False,)},
    parts={"text_config": TEXT, "vision_config": VISION},
)


def check(config: Config, keys: Keys = KEYS) -> list[str]:
    """Check a config.json, the parts included; `keys` are those of a model that derives from Qwen3-Next-Ext-VL."""
    problems = key_problems(config, keys)
    for name, check_part in (("text_config", check_text), ("vision_config", check_vision)):
        part = config.get(name) or {}
        if isinstance(part, Mapping):
            problems += [f"{name}.{problem}" for problem in check_part(part, keys.parts[name])]
        else:
            problems.append(f"{name} must be an object, not {part!r}")
    return problems


def check_vision(config: Config, keys: Keys = VISION) -> list[str]:
    """Check the `vision_config` of a config.json."""
    return key_problems(config, keys)


def settle(config: Any, said: Config) -> None:
    """Let the configuration object say what config.json says. Raises ValueError unless `check` finds it good."""
    refuse(check(said, config.known_keys))
    settle_text(config.text_config, said.get("text_config") or {})
