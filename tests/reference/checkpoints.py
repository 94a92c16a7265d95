"""Tiny random checkpoints of the models under test.

    python tests/reference/checkpoints.py NAME OUT_DIR

The files are written tensor by tensor, in float32, in the layout of the released checkpoints of each family, so that
they do not depend on the version of transformers that reads them. The tokenizer has one token per byte: token i is byte
i - 4, after four special ones. The output rows of all but printable ASCII are small, so greedy answers are readable.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional

SPECIAL_TOKENS = ("<|endoftext|>", "<|begin|>", "<|im_start|>", "<|im_end|>")
VOCAB_SIZE = len(SPECIAL_TOKENS) + 256

# Upstream drops pictures for a model that takes none without a word; a template can refuse them.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}{{ raise_exception('this model takes text, and no ' ~ part['type']) }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Of checkpoints that take pictures: what encloses a picture and stands for it, and a template of such messages.
PICTURE_TOKENS = ("<|picture_start|>", "<|picture|>", "<|picture_end|>")
PICTURE_VOCAB_SIZE = VOCAB_SIZE + len(PICTURE_TOKENS)
PICTURE_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}"
    + "".join(PICTURE_TOKENS)
    + "{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "dtype": "float32",
    "torch_dtype": "float32",  # the name of `dtype` before transformers 4.56
}

_LLAMA = _COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 3,
    "mlp_bias": False,
}

_QWEN3_NEXT = _COMMON | {
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "num_hidden_layers": 6,
    "full_attention_interval": 3,  # layers 2 and 5 have attention, the others a gated delta net
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}

_QWEN3_NEXT_EXT_VL: dict[str, Any] = {
    "architectures": ["Qwen3NextExtVLForConditionalGeneration"],
    "model_type": "qwen3_next_ext_vl",
    "text_config": _QWEN3_NEXT
    | {
        "architectures": ["Qwen3NextExtForCausalLM"],
        "model_type": "qwen3_next_ext",
        "vocab_size": PICTURE_VOCAB_SIZE,
        "num_hidden_layers": 4,
        "full_attention_interval": 2,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "nope_layers": [3],
        "partial_rotary_factor": 0.5,
        "num_experts": 8,
        "moe_intermediate_size": 48,
        "scoring_func": "sigmoid",
        "n_group": 4,
        "topk_group": 2,
        "head_adapter_rank": 8,
        "logit_transform": "softcap",
        "logit_softcap": 15.0,
    },
    "vision_config": {
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "patch_size": 8,
        "merge_size": 2,
        "layer_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "min_pixels": 32 * 32,
        "max_pixels": 128 * 128,
    },
    "image_token_id": VOCAB_SIZE + 1,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": [0, 3],  # an answer ends with <|im_end|>
    "pad_token_id": 0,
    "dtype": "float32",
    "torch_dtype": "float32",
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "llama-logit-shaping": _LLAMA
    | {
        "architectures": ["LlamaLogitShapingForCausalLM"],
        "logit_transform": "softcap",
        "logit_softcap": 10.0,
    },
    "qwen3-next": _QWEN3_NEXT,
}

PICTURE_CONFIG = _QWEN3_NEXT_EXT_VL  # of a checkpoint whose weights are trained, TRAINED_ON_PICTURES


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Apply `changes` to a configuration; None removes a key."""
    return {key: value for key, value in {**config, **changes}.items() if value is not None}


def make_checkpoint(name: str, out: Path, changes: Mapping[str, Any] | None = None) -> None:
    """Write checkpoint `name` (a key of CONFIGS) into the folder `out`.

    `changes` are applied to config.json; None removes a key.
    """
    out.mkdir(parents=True, exist_ok=True)
    config = changed(CONFIGS[name], changes or {})
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(out)
    save_file(tensors(config), out / "model.safetensors", metadata={"format": "pt"})


TRAINED = Path(__file__).parents[1] / "data" / "qwen3-next-ext"  # its README.md says what it is
OFF: dict[str, Any] = {  # of its config.json: every extension switched off
    "nope_layers": None,
    "scoring_func": None,
    "n_group": None,
    "topk_group": None,
    "head_adapter_rank": None,
    "logit_transform": None,
    "logit_softcap": None,
}
TRAINED_ON_PICTURES = Path(__file__).parents[1] / "data" / "qwen3-next-ext-vl"  # its README.md says what it is


def make_variant(out: Path, changes: Mapping[str, Any]) -> None:
    """Write the trained Qwen3-Next-Ext checkpoint into the folder `out`, its config.json changed; None removes a key.

    Tensors that only an extension needs that is off then are left out.
    """
    shutil.copytree(TRAINED, out, dirs_exist_ok=True)
    config = changed(json.loads((TRAINED / "config.json").read_text(encoding="utf-8")), changes)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    unused = [] if config.get("scoring_func") == "sigmoid" else ["e_score_correction_bias"]
    unused += [] if config.get("head_adapter_rank") else ["head_adapter"]
    change_tensors(out, lambda tensors: {k: v for k, v in tensors.items() if not any(part in k for part in unused)})


def make_wide_heads(out: Path) -> None:
    """Write the trained Qwen3-Next-Ext checkpoint into the folder `out`, its attention heads twice as wide.

    It answers as before: the added values are 0, and the norm of the queries takes back what they change in scores.
    FlashInfer has no kernels for heads as narrow as the trained ones.
    """
    config = json.loads((TRAINED / "config.json").read_text(encoding="utf-8"))
    size = config["head_dim"]
    make_variant(out, {"head_dim": 2 * size, "partial_rotary_factor": config["partial_rotary_factor"] / 2})

    def widen(name: str, tensor: torch.Tensor) -> torch.Tensor:
        kind = name.split(".")[-2]
        if kind in ("q_proj", "k_proj", "v_proj"):  # rows are those of one head after another
            return functional.pad(tensor.unflatten(0, (-1, size)), (0, 0, 0, size)).flatten(0, 1)
        if kind == "o_proj":
            return functional.pad(tensor.unflatten(1, (-1, size)), (0, size)).flatten(1, 2)
        if kind == "q_norm":
            # Over twice as many values, normed queries and keys are sqrt(2) times as large each, and scores are divided
            # by sqrt(2) times as much. Norms scale by 1 + weight.
            tensor = (1 + tensor) / math.sqrt(2) - 1
        return functional.pad(tensor, (0, size))

    change_tensors(
        out, lambda tensors: {k: widen(k, v).contiguous() if ".self_attn." in k else v for k, v in tensors.items()}
    )


def change_tensors(
    checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], shards: str = "*"
) -> None:
    """Rewrite the shards of a checkpoint whose names match, and its index."""
    weight_map: dict[str, str] = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        tensors = load_file(shard)
        if shard.match(shards):
            tensors = change(tensors)
            save_file(tensors, shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard.name)
    index = {"metadata": {}, "weight_map": weight_map}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(out: Path, pictures: bool = False) -> None:
    """Write a byte-level tokenizer with a ChatML template, for text or for pictures too, into the folder `out`."""
    characters = byte_characters()
    special = (*SPECIAL_TOKENS, *(PICTURE_TOKENS if pictures else ()))
    vocab = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *characters, *special[len(SPECIAL_TOKENS) :]))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": _COMMON["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "bos_token": SPECIAL_TOKENS[1],
        "eos_token": SPECIAL_TOKENS[0],
        "pad_token": SPECIAL_TOKENS[0],
        "chat_template": PICTURE_CHAT_TEMPLATE if pictures else CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def byte_characters() -> list[str]:
    """List the character by which byte-level BPE writes each of the 256 bytes (GPT-2's `bytes_to_unicode`)."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) if byte in plain else chr(256 + others.index(byte)) for byte in range(256)]


def tensors(config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Draw the weights of a configuration: tensor name to float32 tensor. The same on every run."""
    draw = _Draw(seed=_SEEDS[config["model_type"]])
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    weights = {"model.embed_tokens.weight": draw.normal(vocab, hidden, std=1.0)}
    layers = _llama_layer if config["model_type"] == "llama" else _qwen3_next_layer
    for i in range(config["num_hidden_layers"]):
        weights |= {f"model.layers.{i}.{name}": tensor for name, tensor in layers(config, i, draw).items()}
    if config["model_type"] == "llama":
        weights["model.norm.weight"] = draw.normal(hidden, mean=1.0)
        head = draw.normal(vocab, hidden, std=0.5)
    else:
        weights["model.norm.weight"] = draw.normal(hidden)  # Qwen3-Next's norms scale by 1 + weight
        weights |= _mtp_head(config, draw)
        head = draw.normal(vocab, hidden, std=0.2)
    head[[i for i in range(vocab) if not 0x20 <= i - len(SPECIAL_TOKENS) < 0x7F]] *= 0.1
    weights["lm_head.weight"] = head
    return weights


# Chosen so that no greedy step of the tests is nearly a tie: the rounding of another release must not turn it.
_SEEDS = {"llama": 12, "qwen3_next": 36}


class _Draw:
    """Random tensors from one seeded stream."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, mean: float = 0.0, std: float | None = None) -> torch.Tensor:
        """Draw from a normal distribution. Vectors have a standard deviation of 0.1 unless told, matrices 0.12."""
        if std is None:
            std = 0.1 if len(shape) == 1 else 0.12
        return torch.empty(*shape).normal_(mean, std, generator=self.generator)

    def log_uniform(self, *shape: int, low: float, high: float) -> torch.Tensor:
        """Draw the logarithm of a uniform distribution."""
        return torch.empty(*shape).uniform_(low, high, generator=self.generator).log()


def _llama_layer(config: Mapping[str, Any], index: int, draw: _Draw) -> dict[str, torch.Tensor]:
    hidden, inner, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    return {
        "input_layernorm.weight": draw.normal(hidden, mean=1.0),
        "self_attn.q_proj.weight": draw.normal(q, hidden),
        "self_attn.k_proj.weight": draw.normal(kv, hidden),
        "self_attn.v_proj.weight": draw.normal(kv, hidden),
        "self_attn.o_proj.weight": draw.normal(hidden, q),
        "post_attention_layernorm.weight": draw.normal(hidden, mean=1.0),
        **_mlp("mlp.", hidden, inner, draw),
    }


def _qwen3_next_layer(config: Mapping[str, Any], index: int, draw: _Draw) -> dict[str, torch.Tensor]:
    hidden = config["hidden_size"]
    layer = {"input_layernorm.weight": draw.normal(hidden), "post_attention_layernorm.weight": draw.normal(hidden)}
    if (index + 1) % config["full_attention_interval"] == 0:
        head_dim = config["head_dim"]
        q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
        layer |= {
            "self_attn.q_proj.weight": draw.normal(2 * q, hidden),  # the queries and their gates
            "self_attn.k_proj.weight": draw.normal(kv, hidden),
            "self_attn.v_proj.weight": draw.normal(kv, hidden),
            "self_attn.o_proj.weight": draw.normal(hidden, q),
            "self_attn.q_norm.weight": draw.normal(head_dim),
            "self_attn.k_norm.weight": draw.normal(head_dim),
        }
    else:
        heads, value_dim = config["linear_num_value_heads"], config["linear_value_head_dim"]
        k, v = config["linear_num_key_heads"] * config["linear_key_head_dim"], heads * value_dim
        layer |= {
            "linear_attn.in_proj_qkvz.weight": draw.normal(2 * k + 2 * v, hidden),
            "linear_attn.in_proj_ba.weight": draw.normal(2 * heads, hidden),
            "linear_attn.conv1d.weight": draw.normal(2 * k + v, 1, config["linear_conv_kernel_dim"], std=0.4),
            "linear_attn.dt_bias": draw.normal(heads, std=0.5),
            "linear_attn.A_log": draw.log_uniform(heads, low=0.2, high=4.0),
            "linear_attn.norm.weight": draw.normal(value_dim, mean=1.0),
            "linear_attn.out_proj.weight": draw.normal(hidden, v),
        }
    inner = config["moe_intermediate_size"]
    layer["mlp.gate.weight"] = draw.normal(config["num_experts"], hidden)
    for expert in range(config["num_experts"]):
        layer |= _mlp(f"mlp.experts.{expert}.", hidden, inner, draw)
    layer |= _mlp("mlp.shared_expert.", hidden, config["shared_expert_intermediate_size"], draw)
    layer["mlp.shared_expert_gate.weight"] = draw.normal(1, hidden)
    return layer


def _mtp_head(config: Mapping[str, Any], draw: _Draw) -> dict[str, torch.Tensor]:
    """Draw Qwen3-Next's multi-token-prediction head: one layer with attention, behind a projection of two inputs."""
    hidden = config["hidden_size"]
    layer = _qwen3_next_layer(config, config["full_attention_interval"] - 1, draw)
    return {
        **{f"mtp.layers.0.{name}": tensor for name, tensor in layer.items()},
        "mtp.fc.weight": draw.normal(hidden, 2 * hidden, std=1 / math.sqrt(2 * hidden)),
        "mtp.pre_fc_norm_embedding.weight": draw.normal(hidden),
        "mtp.pre_fc_norm_hidden.weight": draw.normal(hidden),
        "mtp.norm.weight": draw.normal(hidden),
    }


def _mlp(prefix: str, hidden: int, inner: int, draw: _Draw) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}gate_proj.weight": draw.normal(inner, hidden),
        f"{prefix}up_proj.weight": draw.normal(inner, hidden),
        f"{prefix}down_proj.weight": draw.normal(hidden, inner),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a tiny random checkpoint.")
    parser.add_argument("name", choices=CONFIGS)
    parser.add_argument("out_dir", type=Path)
    arguments = parser.parse_args()
    make_checkpoint(arguments.name, arguments.out_dir)
