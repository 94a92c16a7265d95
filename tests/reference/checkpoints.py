"""Tiny checkpoints: what all have, and how they are written.

    python tests/reference/checkpoints.py NAME OUT_DIR

NAME is that of a model in `tests/models/`; without one, it is the first of the overlay's own. Files are written tensor
by tensor, in float32, in the layout of the released checkpoints of each family, so that they do not depend on the
version of transformers that reads them. The tokenizer has one token per byte: token i is byte i - 4, after four special
ones. The output rows of all but printable ASCII are small, so greedy answers are readable.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2] / name) for name in ("tests", "ci")]

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel

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

COMMON: dict[str, Any] = {
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


# Of models with latent attention. No two sizes are equal: else one that is taken for another would change nothing.
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 56,
    "kv_lora_rank": 48,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 36,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 64,
    "routed_scaling_factor": 1.5,
}


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Apply `changes` to a configuration; None removes a key."""
    return {key: value for key, value in {**config, **changes}.items() if value is not None}


def write_config(folder: Path, config: Mapping[str, Any]) -> Path:
    """Write a config.json into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


def write_checkpoint(folder: Path, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    """Write a checkpoint: config.json, tokenizer, and weights in one shard."""
    write_config(folder, config)
    write_tokenizer(folder)
    save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})


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
        "model_max_length": COMMON["max_position_embeddings"],
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


class Draw:
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

    def added(self, known: torch.nn.Module, own: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Draw around their values the tensors that a reference model has beside those of the one it derives from."""
        beside = known.state_dict()
        return {k: v + self.normal(*v.shape) for k, v in own.state_dict().items() if k not in beside}

    def fill(self, shapes: Mapping[str, tuple[int, ...]], norms: float = 1.0) -> dict[str, torch.Tensor]:
        """Draw the weights of a model, named as in a checkpoint, in the order of `shapes`.

        `norms`: the mean of vectors. Embeddings and the head have deviations that make greedy answers readable.
        """
        weights = {}
        # Where embeddings are the head too, each token is likest to itself: they are small, and the last norm is not.
        tied = "lm_head.weight" not in shapes
        for name, shape in shapes.items():
            if name.endswith("embed_tokens.weight"):
                vocab, hidden = shape
                weights[name] = self.head(vocab, hidden, std=0.02) if tied else self.normal(vocab, hidden, std=1.0)
            elif name == "lm_head.weight":
                weights[name] = self.head(*shape)
            else:
                weights[name] = self.normal(*shape, mean=norms if len(shape) == 1 else 0.0)
                if tied and name == "model.norm.weight":
                    weights[name] += 15
        return weights

    def head(self, vocab: int, hidden: int, std: float = 0.5) -> torch.Tensor:
        """Draw the head's weights."""
        head = self.normal(vocab, hidden, std=std)
        head[[i for i in range(vocab) if not 0x20 <= i - len(SPECIAL_TOKENS) < 0x7F]] *= 0.1
        return head


def configuration(model: type[PreTrainedModel], config: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Make the configuration that a class of transformers' has for a config.json, whatever its `model_type`."""
    return model.config_class(
        **{key: value for key, value in config.items() if key not in ("architectures", "model_type")}
    )


def require_all(folder: Path | str, found: Mapping[str, Any]) -> None:
    """Raise ValueError if `found`, what `from_pretrained` says of its loading, names tensors that do not fit."""
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[problem]:
            raise ValueError(f"{folder}: {problem.replace('_keys', '')} tensors: {sorted(found[problem])}")


def drawn_for(
    model: type[PreTrainedModel], prefix: str = ""
) -> Callable[[Mapping[str, Any], int], dict[str, torch.Tensor]]:
    """Make what draws the weights of a configuration, named and shaped as transformers writes those of a class.

    A vector is near what transformers starts it with: norms near 1 or 0, as they scale, and biases near 0. `prefix`
    goes before the names of a model without a head.
    """

    def weights(config: Mapping[str, Any], seed: int) -> dict[str, torch.Tensor]:
        draw = Draw(seed)
        with TemporaryDirectory() as folder:
            model(configuration(model, config)).save_pretrained(folder)
            saved = load_file(Path(folder) / "model.safetensors")
        started = {prefix + name: tensor for name, tensor in saved.items()}
        drawn = draw.fill({name: tuple(tensor.shape) for name, tensor in started.items()}, norms=0.0)
        return {name: value + started[name].mean() * (value.ndim == 1) for name, value in drawn.items()}

    return weights


def main() -> None:
    """Read the command line."""
    from reference.cases import cases, make_checkpoint

    made = {name: case.ours for name, case in cases().items()}
    parser = argparse.ArgumentParser(description="Write the tiny checkpoint of a case.")
    parser.add_argument("name", nargs="?", choices=made, default=max(made, key=lambda name: made[name]))
    parser.add_argument("out_dir", type=Path)
    arguments = parser.parse_args()
    make_checkpoint(arguments.name, arguments.out_dir)


if __name__ == "__main__":
    main()
