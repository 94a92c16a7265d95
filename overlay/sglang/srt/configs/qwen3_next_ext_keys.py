"""What config.json may say to Qwen3-Next-Ext, and to the text model of Qwen3-Next-Ext-VL."""

from typing import Any

from sglang.srt.configs.config_keys import (
    LOGITS,
    ROPE,
    SIZES,
    Config,
    Keys,
    is_count,
    key_problems,
    logit_problems,
    refuse,
    rope_of,
    rope_problems,
    settle_rope,
)

KEYS = Keys(
    read=(
        *ROPE, *LOGITS, "attn_output_gate", "full_attention_interval", "head_adapter_rank", "layer_types",
        "mamba_ssm_dtype", "n_group", "nope_layers", "norm_topk_prob", "num_nextn_predict_layers", "rms_norm_eps",
        "scoring_func", "shared_expert_intermediate_size", "topk_group",
    ),
    sizes=(
        *SIZES, "linear_conv_kernel_dim", "linear_key_head_dim", "linear_num_key_heads", "linear_num_value_heads",
        "linear_value_head_dim", "moe_intermediate_size", "num_experts", "num_experts_per_tok",
    ),
    nullable=(
        "final_logit_softcapping", "head_dim", "layer_types", "logit_softcap", "mamba_ssm_dtype", "nope_layers",
        "num_nextn_predict_layers",
    ),
    fixed={
        "attention_bias": (False,),
        "decoder_sparse_step": (1,),
        "hidden_act": ("silu",),
        "mlp_only_layers": ([],),
        "output_gate_type": (None, "silu"),
        "tie_word_embeddings": (False,),
        "use_sliding_window": (False,),
    },
)  # fmt: skip

# Defaults of upstream's Qwen3-Next, and of the extensions.
DEFAULTS: Config = {
    "full_attention_interval": 4,
    "head_adapter_rank": 0,
    "head_dim": 256,
    "hidden_size": 2048,
    "logit_transform": "none",
    "max_position_embeddings": 32768,
    "n_group": 1,
    "norm_topk_prob": True,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "partial_rotary_factor": 0.25,
    "scoring_func": "softmax",
    "topk_group": 1,
}


def check(config: Config, keys: Keys = KEYS) -> list[str]:
    """Check a config.json, or its `text_config`; `keys` are those of a model that derives from Qwen3-Next-Ext."""
    if problems := key_problems(config, keys):
        return problems  # what follows calculates with some of the values
    return extension_problems({**DEFAULTS, **config}) + rope_problems(config)


def settle(config: Any, said: Config) -> None:
    """Let the configuration object say what config.json says, in all forms of positions and of layers.

    Raises ValueError, naming the keys, unless `check` finds it good.
    """
    refuse(check(said, config.known_keys))
    config.layer_types, config.nope_layers = layers_of(said)
    settle_rope(config, rope_of(said, DEFAULTS["partial_rotary_factor"]))


def extension_problems(config: Config) -> list[str]:
    """Check the values of the keys that Qwen3-Next-Ext adds to Qwen3-Next; `config` has all of DEFAULTS."""
    problems = layer_problems(config) + _router_problems(config) + logit_problems(config)
    rank, hidden = config["head_adapter_rank"], config["hidden_size"]
    if not is_count(rank, 0) or rank > hidden:
        problems.append(f"head_adapter_rank must be 0 to hidden_size ({hidden}), not {rank!r}")
    return problems


def layers_of(config: Config) -> tuple[list[str] | None, list[int]]:
    """Read the kinds of layers: `layer_types` in transformers' words, and which layers have no rotary positions.

    `nope_layers` lists the latter. Files of the overlay's first two revisions say "nope_attention" in `layer_types`.
    """
    types, nope = config.get("layer_types"), config.get("nope_layers") or []
    if not isinstance(types, list) or "nope_attention" not in types:
        return types, nope
    there = [i for i, name in enumerate(types) if name == "nope_attention"]
    return ["full_attention" if i in there else name for i, name in enumerate(types)], nope or there


def layer_problems(config: Config) -> list[str]:
    """Check the keys of which `layers_of` and upstream's table of layers are made."""
    count, interval = config["num_hidden_layers"], config["full_attention_interval"]
    types, nope = layers_of(config)
    if types is None:
        if not is_count(interval, 1):
            return [f"full_attention_interval must be a number of layers, not {interval!r}"]
        types = ["linear_attention" if (i + 1) % interval else "full_attention" for i in range(count)]
    if not isinstance(types, list) or len(types) != count:
        return [f"layer_types must list {count} layers, not {types!r}"]
    if unknown := [name for name in types if name not in ("linear_attention", "full_attention")]:
        return [f"layer_types has {unknown[0]!r}; known are linear_attention and full_attention"]
    if types.count("linear_attention") in (0, count):
        return ["layer_types must have both linear_attention and full_attention"]
    if not isinstance(nope, list) or not all(is_count(i, 0) for i in nope) or len({*nope}) != len(nope):
        return [f"nope_layers must list layers, counted from 0, not {nope!r}"]
    if wrong := [i for i in nope if i >= count or types[i] != "full_attention"]:
        return [f"nope_layers has {wrong[0]}, and layer_types has no full_attention there"]
    old = [i for i, name in enumerate(config.get("layer_types") or []) if name == "nope_attention"]
    if old and sorted(nope) != old:
        return [f"layer_types has nope_attention at {old}, and nope_layers is {nope}; write nope_layers alone"]
    return []


def _router_problems(config: Config) -> list[str]:
    scoring, groups, kept = config["scoring_func"], config["n_group"], config["topk_group"]
    experts, chosen = config["num_experts"], config["num_experts_per_tok"]
    if scoring not in ("softmax", "sigmoid"):
        return [f"scoring_func must be 'softmax' or 'sigmoid', not {scoring!r}"]
    if scoring == "softmax":
        without_effect = (groups, kept) != (1, 1)
        return ["n_group and topk_group have no effect with scoring_func 'softmax'"] if without_effect else []
    if not config["norm_topk_prob"]:  # upstream's fused routers on a GPU have no other way
        return ["norm_topk_prob must be true with scoring_func 'sigmoid'"]
    if not is_count(groups, 1) or experts % groups != 0 or experts // groups < 2:
        return [f"n_group must divide num_experts ({experts}) into groups of two or more, not {groups!r}"]
    if not is_count(kept, 1) or kept > groups:
        return [f"topk_group must be 1 to n_group ({groups}), not {kept!r}"]
    if kept * (experts // groups) < chosen:
        left = kept * (experts // groups)
        return [f"topk_group {kept} leaves {left} experts to choose num_experts_per_tok ({chosen}) from"]
    return []
