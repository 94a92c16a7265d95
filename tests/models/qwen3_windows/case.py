"""Qwen3-Windows: random weights in a tiny Qwen3, every other layer of which has a window."""

from __future__ import annotations

from reference.cases import Case, Decisions, usual_faults, with_transformers
from reference.checkpoints import COMMON, changed, drawn_for

from models.qwen3_windows.reference import Qwen3Windows

WINDOW = 24
ONE_KEY = "one key for all heads"
WINDOWS = {
    "use_sliding_window": True,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
CONFIG = changed(
    COMMON,
    {
        "architectures": ["Qwen3WindowsForCausalLM"],
        "model_type": "qwen3_windows",
        "num_hidden_layers": 4,
        "head_dim": 48,  # times the heads, more than hidden_size
        **WINDOWS,
    },
)

# Qwen3-8B's dimensions, with windows in every other layer. POOLS is what the derived configuration says by itself.
NAMES = {key: CONFIG[key] for key in ("architectures", "model_type")}
BASE = CONFIG | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "sliding_window": 4096,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "dtype": "bfloat16",
    "torch_dtype": "bfloat16",
}
POOLS = {"is_hybrid_swa": True, "hybrid_layer_pattern": [1, 0] * 18}
MAY_DIFFER = {
    "__class__": "the derived model has a class of its own",
    "model_type": "by which transformers finds that class",
    "overlay_architecture": "the derived model's own name, which only the overlay reads",
    **dict.fromkeys(POOLS, "the derived configuration answers it"),
    **dict.fromkeys((f"{key}()" for key in POOLS), "with a property"),
}

CASE = Case(
    config=CONFIG,
    weights=drawn_for(Qwen3Windows),
    seed=0,
    load=with_transformers(Qwen3Windows),
    sets={"no windows": dict.fromkeys(WINDOWS), ONE_KEY: {"num_key_value_heads": 1}, "all": {}},
    served="all",
    servers=("sets", "small pool", "two ranks", f"two ranks, {ONE_KEY}"),
    updates=("model.norm.weight", "model.layers.1.mlp.up_proj.weight"),
    faults=usual_faults("models.qwen3_windows"),
    decisions=Decisions(
        base=BASE | POOLS,
        configuration="Qwen3Config",
        derived={"windows": BASE | NAMES},
        differences={"windows": MAY_DIFFER},
    ),
)
