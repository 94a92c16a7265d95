"""Configuration of Qwen3-Next-Ext-VL: Qwen3-Next-Ext behind a vision tower.

"architectures": ["Qwen3NextExtVLForConditionalGeneration"],
"model_type": "qwen3_next_ext_vl",
"text_config": {"model_type": "qwen3_next_ext", ...},
"vision_config": {...},
"image_token_id": 261
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from sglang.srt.configs.config_keys import Keys, refuse, written
from sglang.srt.configs.derived_config import OwnConstructor
from sglang.srt.configs.qwen3_next_ext import Qwen3NextExtConfig
from sglang.srt.configs.qwen3_next_ext_vl_keys import KEYS, VISION, check, check_vision
from sglang.srt.overlay_registry import alias
from transformers import PretrainedConfig

CHAT_TEMPLATE = "qwen3-next-ext-vl"
SETTINGS = "--mm-process-config"


class Qwen3NextExtVisionConfig(OwnConstructor, PretrainedConfig):
    """The vision tower's configuration.

    - `patch_size`: the side of a patch in pixels; `merge_size` x `merge_size` patches become a token of the text.
    - `min_pixels`, `max_pixels`: a picture is resized to an area between the two, see `fitted`.

    Raises ValueError, naming the key, on a key that is unknown.
    """

    model_type = "qwen3_next_ext_vision"
    known_keys: ClassVar[Keys] = VISION

    def __init__(
        self,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        patch_size=16,
        merge_size=2,
        layer_norm_eps=1e-6,
        rope_theta=10000.0,
        min_pixels=128 * 128,
        max_pixels=1024 * 1024,
        **kwargs,
    ):
        refuse(check_vision(kwargs, self.known_keys))
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.patch_size = patch_size
        self.merge_size = merge_size
        self.layer_norm_eps = layer_norm_eps
        self.rope_theta = rope_theta
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels

    def to_dict(self) -> dict[str, Any]:
        """Give what `save_pretrained` writes."""
        return written(super().to_dict(), self.known_keys)

    def fitted(self, width: int, height: int) -> tuple[int, int]:
        """Give the rows and columns of tokens that a picture becomes, for its size in pixels.

        Its area is brought between the two limits at the same proportions, as near as whole tokens allow. Of a picture
        so long that it would be less than a token wide, the longer side is squeezed.
        """
        side = self.patch_size * self.merge_size
        most = self.max_pixels // side**2
        area = width * height
        scale = math.sqrt(min(max(area, self.min_pixels), self.max_pixels) / area)
        columns = min(max(round(width * scale / side), 1), most)
        rows = min(max(round(height * scale / side), 1), most // columns)
        return rows, columns


class Qwen3NextExtVLConfig(OwnConstructor, PretrainedConfig):
    """A text model's and a vision tower's configuration, and `image_token_id`, the token that stands for a picture.

    A class that derives from this one has a `model_type` of its own, and `known_keys` that are these and its own, each
    of which becomes an attribute; so has one that derives from a part's and takes its place in `sub_configs`.
    Raises ValueError, naming the key, on a key that is unknown, of the parts too.
    """

    model_type = "qwen3_next_ext_vl"
    known_keys: ClassVar[Keys] = KEYS
    sub_configs: ClassVar = {"text_config": Qwen3NextExtConfig, "vision_config": Qwen3NextExtVisionConfig}

    def __init__(self, text_config=None, vision_config=None, image_token_id=None, **kwargs):
        for name, value in (("text_config", text_config), ("vision_config", vision_config)):
            made = value if isinstance(value, PretrainedConfig) else self.sub_configs[name](**(value or {}))
            setattr(self, name, made)
        self.image_token_id = image_token_id
        refuse(check(kwargs, self.known_keys))
        super().__init__(**kwargs)
        if getattr(self, "eos_token_id", None) is None:  # upstream asks this configuration alone for it
            self.eos_token_id = getattr(self.text_config, "eos_token_id", None)
        alias(self)

    def to_dict(self) -> dict[str, Any]:
        """Give what `save_pretrained` writes: the model under its own name."""
        return written(super().to_dict(), self.known_keys)

    def check_pictures(self) -> None:
        """Raise ValueError, naming the key of config.json, on a value out of range of those that concern pictures."""
        vision, vocabulary = self.vision_config, self.text_config.vocab_size
        if not isinstance(self.image_token_id, int) or not 0 <= self.image_token_id < vocabulary:
            raise ValueError(
                f"config.json: image_token_id must be a token below vocab_size ({vocabulary}), "
                f"not {self.image_token_id!r}"
            )
        for name in ("num_hidden_layers", "num_attention_heads", "patch_size", "merge_size"):
            value = getattr(vision, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"config.json: vision_config.{name} must be a number from 1 on, not {value!r}")
        if vision.hidden_size % (4 * vision.num_attention_heads):
            raise ValueError(
                f"config.json: vision_config.hidden_size ({vision.hidden_size}) must be a multiple of 4 times "
                f"num_attention_heads ({vision.num_attention_heads}): a head turns a half for each dimension"
            )
        self._check_limits("config.json: vision_config.")

    def limit_pictures(self, settings: Mapping[str, Any]) -> None:
        """Put the limits that `--mm-process-config` sets in place of those of config.json, which `check_pictures` has.

        Raises ValueError, naming the setting, on one that this model does not have, or that is out of range.
        """
        for name, value in _named(settings):
            if name not in ("image.min_pixels", "image.max_pixels"):
                raise ValueError(f"{SETTINGS}: this model has image.min_pixels and image.max_pixels, not {name}")
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{SETTINGS}: {name} must be a whole number, not {value!r}")
            setattr(self.vision_config, name.removeprefix("image."), value)
        self._check_limits(f"{SETTINGS}: of image, ")

    def _check_limits(self, source: str) -> None:
        vision = self.vision_config
        side = vision.patch_size * vision.merge_size
        if not 0 < vision.min_pixels <= vision.max_pixels or vision.max_pixels < side**2:
            raise ValueError(
                f"{source}min_pixels ({vision.min_pixels}) must be from 1 to max_pixels "
                f"({vision.max_pixels}), and that at least the {side**2} of a token"
            )


def _named(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for kind, keys in settings.items():
        if isinstance(keys, Mapping):
            yield from ((f"{kind}.{key}", value) for key, value in keys.items())
        else:
            yield kind, keys


def chat_template() -> Any:
    """Make the chat template for checkpoints without one of their own, a Conversation of upstream's."""
    from sglang.srt.parser.conversation import Conversation, SeparatorStyle

    return Conversation(
        name=CHAT_TEMPLATE,
        roles=("<|im_start|>user", "<|im_start|>assistant"),
        system_template="<|im_start|>system\n{system_message}",
        sep_style=SeparatorStyle.ADD_NEW_LINE_SINGLE,
        sep="<|im_end|>\n",
        stop_str=["<|im_end|>"],
        image_token="<|picture_start|><|picture|><|picture_end|>",
    )
