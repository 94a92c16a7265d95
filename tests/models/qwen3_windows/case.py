"""Qwen3-Windows: random weights in a tiny Qwen3, every other layer of which has a window."""

from __future__ import annotations

from reference.cases import Case, usual_faults, with_transformers
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
)
