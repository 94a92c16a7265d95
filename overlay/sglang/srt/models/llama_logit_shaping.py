"""Llama with a transform of its logits, chosen in the checkpoint's config.json.

    "architectures": ["LlamaLogitShapingForCausalLM"],
    "model_type": "llama",
    "logit_transform": "softcap",
    "logit_softcap": 30.0

`logit_transform` is "none" (the default), "softcap" or "sqrt_positive". Everything else is upstream's Llama.
"""

from sglang.srt.layers.logit_shaping import LogitShapingProcessor
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_loader.checked_updates import load_checked, serve_checked
from sglang.srt.model_loader.quantised_tensors import make_check
from sglang.srt.model_loader.strict_loading import Weights
from sglang.srt.models.llama import LlamaForCausalLM
from transformers import LlamaConfig


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


class LlamaLogitShapingForCausalLM(LlamaForCausalLM):
    """Upstream's Llama with a logit transform and strict weight loading."""

    def __init__(self, config: LlamaConfig, quant_config: QuantizationConfig | None = None, prefix: str = "") -> None:
        super().__init__(config, quant_config=quant_config, prefix=prefix)
        self.logits_processor = LogitShapingProcessor(config)
        # With tied embeddings the head is a copy of them.
        ignored = ("lm_head.weight",) if config.tie_word_embeddings else ()
        serve_checked(self, make_check(self, checkpoint_shapes(config), ignored))

    def load_weights(self, weights: Weights):
        """Load a checkpoint, or an update of some weights. Raises WeightsError naming each tensor that does not fit."""
        return load_checked(self, weights, super().load_weights)


EntryClass = LlamaLogitShapingForCausalLM
