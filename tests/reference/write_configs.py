"""Let a version of transformers write config.json for each kind of rotary positions that it shares with the engine.

    python tests/reference/write_configs.py

adds what the installed transformers writes to `tests/data/written-configs.json`, under its version. It needs neither
torch nor anything else of this project. The models are those of `checkpoints.py`, of the same sizes.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import transformers

FILE = Path(__file__).parents[1] / "data" / "written-configs.json"
DATA = FILE.with_name("qwen3-next-ext") / "config.json"

# What is asked for, in the words of version 4, from which each version makes its own.
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_theta": 10000000.0},
    "linear": {"rope_theta": 10000000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3": {
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    },
    "yarn": {"rope_theta": 1000000.0, "rope_scaling": YARN},
    "yarn, attention_factor": {"rope_theta": 1000000.0, "rope_scaling": {**YARN, "attention_factor": 1.5}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
}

# Keys that each model has beside those of its sizes.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"architectures": ["LlamaForCausalLM"]}),
    "qwen3_next": ("Qwen3NextConfig", {"architectures": ["Qwen3NextForCausalLM"], "partial_rotary_factor": 0.5}),
}
EXTENSIONS = ("scoring_func", "n_group", "topk_group", "head_adapter_rank", "logit_transform", "logit_softcap")


def sizes(model: str) -> dict[str, Any]:
    """Give the keys of the trained Qwen3-Next-Ext that the stock model has too, but those of rotary positions."""
    config = json.loads(DATA.read_text(encoding="utf-8"))
    left_out = (*EXTENSIONS, "nope_layers", "architectures", "model_type", "rope_theta", "torch_dtype")
    config = {key: value for key, value in config.items() if key not in (*left_out, "partial_rotary_factor")}
    if model == "llama":
        config = {
            key: value
            for key, value in config.items()
            if "linear" not in key and "expert" not in key and key not in ("layer_types", "mlp_only_layers")
        }
        del config["moe_intermediate_size"], config["decoder_sparse_step"], config["norm_topk_prob"]
        config |= {"num_hidden_layers": 3}
    return config


def main() -> None:
    """Write the file anew with what this version writes."""
    written = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    of_version = written[transformers.__version__] = {}
    for model, (name, keys) in MODELS.items():
        of_version[model] = {}
        for rope, asked in ROPES.items():
            with tempfile.TemporaryDirectory() as folder:
                getattr(transformers, name)(**sizes(model), **keys, **json.loads(json.dumps(asked))).save_pretrained(
                    folder
                )
                of_version[model][rope] = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    ordered = dict(sorted(written.items(), key=lambda item: [int(part) for part in item[0].split(".")]))
    # A line for each config.json.
    text = json.dumps(ordered, indent=1)
    for config in (config for models in ordered.values() for ropes in models.values() for config in ropes.values()):
        indented = json.dumps(config, indent=1).replace("\n", "\n   ")
        text = text.replace(indented, json.dumps(config))
    FILE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
