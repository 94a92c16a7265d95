"""Configuration of Qwen3-Next-Ext: upstream's Qwen3-Next with extensions that config.json switches on.

    "architectures": ["Qwen3NextExtForCausalLM"],
    "model_type": "qwen3_next_ext"

With no more than that, the model is Qwen3-Next.
"""

from sglang.srt.configs.qwen3_next import Qwen3NextConfig
from sglang.srt.overlay_registry import alias

# The names of layer types in config.json, and those by which upstream's table of decoder layers knows them.
LAYER_TYPES = {
    "linear_attention": "linear_attention",
    "full_attention": "attention",
    "nope_attention": "nope_attention",
}


# What upstream rounds up in a configuration, after it is made, to share it among tensor parallel ranks on a CPU.
_ROUNDED = (
    "num_attention_heads",
    "num_key_value_heads",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)


class Qwen3NextExtConfig(Qwen3NextConfig):
    """Upstream's configuration, and these keys.

    - `layer_types`: one of "linear_attention", "full_attention" and "nope_attention" (full attention without rotary
      positions) a layer. By default each `full_attention_interval`-th layer has full attention, the others linear.
    - `scoring_func`: how routers score experts: "softmax", or "sigmoid" with a correction bias that only has a say in
      which are chosen (DeepSeek-V3, arXiv:2412.19437, section 2.1.2), among the best `topk_group` of `n_group` groups.
    - `head_adapter_rank`: the rank of a residual adapter between the last norm and the head; 0 is none.
    - `logit_transform`, `logit_softcap`: see `layers/logit_shaping.py`.

    `checkpoint_sizes` keeps the sizes of the checkpoint's tensors where upstream may round up those of the model.
    Raises ValueError, naming the key, on a value out of range or without effect.
    """

    model_type = "qwen3_next_ext"

    def __init__(
        self,
        layer_types=None,
        full_attention_interval=4,
        scoring_func="softmax",
        n_group=1,
        topk_group=1,
        head_adapter_rank=0,
        logit_transform="none",
        logit_softcap=None,
        **kwargs,
    ):
        super().__init__(full_attention_interval=full_attention_interval, **kwargs)
        self.layer_types = layer_types
        self.scoring_func = scoring_func
        self.n_group = n_group
        self.topk_group = topk_group
        self.head_adapter_rank = head_adapter_rank
        self.logit_transform = logit_transform
        self.logit_softcap = logit_softcap
        self.checkpoint_sizes = {name: getattr(self, name) for name in _ROUNDED}
        self.check_extensions()
        alias(self)

    def validate(self) -> None:
        """Leave it to `check_extensions`: transformers 5, when it saves this, refuses layer types it does not know."""

    def check_extensions(self) -> None:
        """Raise ValueError, naming the key, on a value of an extension that is out of range or without effect."""
        layers = self.layer_types
        if layers is not None:
            if not isinstance(layers, list) or len(layers) != self.num_hidden_layers:
                raise ValueError(f"config.json: layer_types must list {self.num_hidden_layers} layers, not {layers!r}")
            if unknown := [name for name in layers if name not in LAYER_TYPES]:
                raise ValueError(f"config.json: layer_types has {unknown[0]!r}; known are {', '.join(LAYER_TYPES)}")
        if not _is_count(self.full_attention_interval, 1):
            raise ValueError(
                f"config.json: full_attention_interval must be a number of layers, not {self.full_attention_interval!r}"
            )
        types = self.layers_block_type
        if types.count("linear_attention") in (0, len(types)):
            raise ValueError("config.json: layer_types must have both linear_attention and attention of another kind")
        self._check_router()
        if not _is_count(self.head_adapter_rank, 0) or self.head_adapter_rank > self.hidden_size:
            raise ValueError(
                f"config.json: head_adapter_rank must be 0 to hidden_size ({self.hidden_size}), "
                f"not {self.head_adapter_rank!r}"
            )

    def _check_router(self) -> None:
        if self.scoring_func not in ("softmax", "sigmoid"):
            raise ValueError(f"config.json: scoring_func must be 'softmax' or 'sigmoid', not {self.scoring_func!r}")
        groups, kept, experts = self.n_group, self.topk_group, self.num_experts
        if self.scoring_func == "softmax":
            if (groups, kept) != (1, 1):
                raise ValueError("config.json: n_group and topk_group have no effect with scoring_func 'softmax'")
            return
        if not self.norm_topk_prob:  # upstream's fused routers on a GPU have no other way
            raise ValueError("config.json: norm_topk_prob must be true with scoring_func 'sigmoid'")
        if not _is_count(groups, 1) or experts % groups != 0 or experts // groups < 2:
            raise ValueError(
                f"config.json: n_group must divide num_experts ({experts}) into groups of two or more, not {groups!r}"
            )
        if not _is_count(kept, 1) or kept > groups:
            raise ValueError(f"config.json: topk_group must be 1 to n_group ({groups}), not {kept!r}")
        if kept * (experts // groups) < self.num_experts_per_tok:
            raise ValueError(
                f"config.json: topk_group {kept} leaves {kept * (experts // groups)} experts to choose "
                f"num_experts_per_tok ({self.num_experts_per_tok}) from"
            )

    @property
    def layers_block_type(self) -> list[str]:
        """List the layers' types as upstream's table of decoder layers names them."""
        # Upstream's draft model sets both to 1 for its only layer, on this very object up to 0.5.12.
        draft = self.num_hidden_layers == 1 and self.full_attention_interval == 1
        if self.layer_types is None or draft:
            return super().layers_block_type
        return [LAYER_TYPES[name] for name in self.layer_types]

    @property
    def full_attention_layer_ids(self) -> list[int]:
        """List the layers that have a KV cache."""
        return [i for i, name in enumerate(self.layers_block_type) if name != "linear_attention"]


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
