"""Configuration of Qwen3-Next-Ext: upstream's Qwen3-Next with extensions that config.json switches on.

    "architectures": ["Qwen3NextExtForCausalLM"],
    "model_type": "qwen3_next_ext"

With no more than that, the model is Qwen3-Next.
"""

from typing import Any, ClassVar

from sglang.srt.configs.config_keys import Keys, refuse, written
from sglang.srt.configs.derived_config import OwnConstructor
from sglang.srt.configs.qwen3_next import Qwen3NextConfig
from sglang.srt.configs.qwen3_next_ext_keys import DEFAULTS, KEYS, check, extension_problems, layers_of, settle
from sglang.srt.overlay_registry import alias

# What upstream rounds up in a configuration after it is made, to share it among tensor parallel ranks on a CPU.
_ROUNDED = (
    "num_attention_heads",
    "num_key_value_heads",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)
_ROPE = ("rope_theta", "partial_rotary_factor", "rope_scaling", "rope_parameters")


class Qwen3NextExtConfig(OwnConstructor, Qwen3NextConfig):
    """Upstream's configuration, and these keys.

    - `nope_layers`: the layers, counted from 0, whose full attention has no rotary positions. By default each
      `full_attention_interval`-th layer has full attention and the others linear; `layer_types` may say otherwise.
    - `scoring_func`: how routers score experts: "softmax", or "sigmoid" with a correction bias that only has a say in
      which are chosen (DeepSeek-V3, arXiv:2412.19437, section 2.1.2), among the best `topk_group` of `n_group` groups.
    - `head_adapter_rank`: the rank of a residual adapter between the last norm and the head; 0 for none.
    - `logit_transform`, `logit_softcap`: see `layers/logit_shaping.py`.

    `checkpoint_sizes` keeps the sizes of the checkpoint's tensors where upstream may round up those of the model.
    A class that derives from this one has a `model_type` of its own, and `known_keys` that are these and its own, each
    of which becomes an attribute.
    Raises ValueError, naming the key, on a key that is unknown and a value that is out of range or has no effect.
    """

    model_type = "qwen3_next_ext"
    known_keys: ClassVar[Keys] = KEYS

    def __init__(self, **said) -> None:
        refuse(check(said, self.known_keys))
        rest = {key: value for key, value in said.items() if key not in _ROPE}
        super().__init__(**{"full_attention_interval": 4, **rest})
        self.scoring_func = said.get("scoring_func", "softmax")
        self.n_group, self.topk_group = said.get("n_group", 1), said.get("topk_group", 1)
        self.head_adapter_rank = said.get("head_adapter_rank", 0)
        self.logit_transform, self.logit_softcap = said.get("logit_transform", "none"), said.get("logit_softcap")
        self.layer_types, self.nope_layers = layers_of(said)
        settle(self, said)
        self.checkpoint_sizes = {name: getattr(self, name) for name in _ROUNDED}
        alias(self)

    def check_extensions(self) -> None:
        """Raise ValueError, naming the key, on a value of an extension that is out of range or has no effect."""
        keys = (*DEFAULTS, "layer_types", "nope_layers", "logit_softcap", "final_logit_softcapping")
        refuse(extension_problems({key: getattr(self, key, None) for key in keys}))

    def to_dict(self) -> dict[str, Any]:
        """Give what `save_pretrained` writes: the model under its own name."""
        return written(super().to_dict(), self.known_keys)

    @property
    def layers_block_type(self) -> list[str]:
        """List the layers' types as upstream's table of decoder layers names them."""
        types, nope = layers_of({"layer_types": self.layer_types, "nope_layers": self.nope_layers})
        # Upstream's draft model sets both to 1 for its only layer, on this very object up to 0.5.12.
        draft = self.num_hidden_layers == 1 and self.full_attention_interval == 1
        if draft or types is None:
            names = super().layers_block_type
        else:
            names = ["attention" if name == "full_attention" else name for name in types]
        return names if draft else ["nope_attention" if i in nope else name for i, name in enumerate(names)]

    @property
    def full_attention_layer_ids(self) -> list[int]:
        """List the layers that have a KV cache."""
        return [i for i, name in enumerate(self.layers_block_type) if name != "linear_attention"]
