"""Llama with a transform of its logits, chosen in the checkpoint's config.json.

    "architectures": ["LlamaLogitShapingForCausalLM"],
    "model_type": "llama",
    "logit_transform": "softcap",
    "logit_softcap": 30.0

`logit_transform` is "none" (the default), "softcap" or "sqrt_positive". Everything else is upstream's Llama.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.llama import LlamaForCausalLM
from transformers import LlamaConfig


def softcap_(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """Replace `logits` by `cap * tanh(logits / cap)`, which stays between -cap and cap, as in Gemma 2."""
    return logits.div_(cap).tanh_().mul_(cap)


def sqrt_positive_(logits: torch.Tensor) -> torch.Tensor:
    """Replace `logits` by the square root of its positive part: 0 where it is negative."""
    return logits.clamp_(min=0).sqrt_()


def logit_transform(config: LlamaConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """Read the transform from a checkpoint's configuration: a function that changes the logits in place.

    Raises ValueError, naming the key of config.json, on a value that is missing, out of range or without effect.
    """
    kind = getattr(config, "logit_transform", "none")
    cap = getattr(config, "logit_softcap", None)
    if kind not in ("none", "softcap", "sqrt_positive"):
        raise ValueError(f"config.json: logit_transform must be 'none', 'softcap' or 'sqrt_positive', not {kind!r}")
    if kind != "none" and getattr(config, "final_logit_softcapping", None) is not None:
        raise ValueError("config.json: final_logit_softcapping (upstream's own cap) excludes logit_transform; drop one")
    if kind == "softcap":
        if isinstance(cap, bool) or not isinstance(cap, (int, float)) or not 0 < cap < math.inf:
            raise ValueError(f"config.json: logit_softcap must be a finite number above 0, not {cap!r}")
        return lambda logits: softcap_(logits, cap)
    if cap is not None:
        raise ValueError(f"config.json: logit_softcap has no effect with logit_transform {kind!r}; drop one")
    return sqrt_positive_ if kind == "sqrt_positive" else lambda logits: logits


class LogitShapingProcessor(LogitsProcessor):
    """Upstream's logits processor with the configured transform of the logits.

    In every release `_get_logits` is where sampled logits, prompt logprobs and scores all come from. It returns them
    gathered over the tensor parallel ranks, cut to the vocabulary and in float32, possibly in a CUDA graph's buffer:
    hence the transform in place.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.transform = logit_transform(config)

    def _get_logits(self, *args, **kwargs) -> torch.Tensor:
        return self.transform(super()._get_logits(*args, **kwargs))


def checkpoint_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """List the tensors of an unquantised Llama checkpoint: name to shape, before any sharding."""
    hidden, inner = config.hidden_size, config.intermediate_size
    head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    q, kv = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    layer = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, q),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if getattr(config, "attention_bias", False) or getattr(config, "bias", False):
        layer |= {"self_attn.q_proj.bias": (q,), "self_attn.k_proj.bias": (kv,)}
        layer |= {"self_attn.v_proj.bias": (kv,), "self_attn.o_proj.bias": (hidden,)}
    shapes = {"model.embed_tokens.weight": (config.vocab_size, hidden), "model.norm.weight": (hidden,)}
    for i in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def checked_weights(
    weights: Iterable[tuple[str, torch.Tensor]],
    expected: dict[str, tuple[int, ...]],
    ignored: tuple[str, ...] = (),
    whole: bool = True,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass on the tensors that are `expected`; then raise ValueError naming each that is not, or is misshapen.

    Tensors whose name contains one of `ignored` are dropped. With `whole`, each missing tensor is named as well.
    """
    problems, seen = [], set()
    for name, tensor in weights:
        if any(part in name for part in ignored):
            continue
        seen.add(name)
        if name not in expected:
            problems.append(f"{name}: not a tensor of this model")
        elif tuple(tensor.shape) != expected[name]:
            problems.append(f"{name}: its shape is {tuple(tensor.shape)}, not {expected[name]}")
        else:
            yield name, tensor
    if whole:
        problems += [f"{name}: missing" for name in expected if name not in seen]
    if problems:
        raise ValueError("the checkpoint does not fit its config.json:\n  " + "\n  ".join(problems))


class LlamaLogitShapingForCausalLM(LlamaForCausalLM):
    """Upstream's Llama with a logit transform and strict weight loading."""

    def __init__(self, config: LlamaConfig, quant_config: QuantizationConfig | None = None, prefix: str = "") -> None:
        super().__init__(config, quant_config=quant_config, prefix=prefix)
        self.logits_processor = LogitShapingProcessor(config)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]):
        """Load the tensors of a checkpoint. Raises ValueError naming each one missing, extra or misshapen.

        Upstream's loaders pass an iterator over a whole checkpoint, and a list when a trainer updates a part of the
        weights of a running server. The names and shapes of a quantised checkpoint are its format's, left to upstream.
        """
        if self.quant_config is None:
            # Not weights: constants that old checkpoints hold, and a copy of the embedding beside a tied one.
            ignored = ("rotary_emb.",) + (("lm_head.weight",) if self.config.tie_word_embeddings else ())
            whole = not isinstance(weights, list)
            weights = checked_weights(weights, checkpoint_shapes(self.config), ignored, whole)
        return super().load_weights(weights)


EntryClass = LlamaLogitShapingForCausalLM
