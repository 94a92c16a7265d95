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
from sglang.srt.model_loader.transformers_shapes import transformers_shapes
from sglang.srt.models.llama import LlamaForCausalLM
from transformers import LlamaConfig


class LlamaLogitShapingForCausalLM(LlamaForCausalLM):
    """Upstream's Llama with a logit transform and strict weight loading."""

    def __init__(self, config: LlamaConfig, quant_config: QuantizationConfig | None = None, prefix: str = "") -> None:
        super().__init__(config, quant_config=quant_config, prefix=prefix)
        self.logits_processor = LogitShapingProcessor(config)
        serve_checked(self, make_check(self, transformers_shapes(config)))

    def load_weights(self, weights: Weights):
        """Load a checkpoint, or an update of some weights. Raises WeightsError naming each tensor that does not fit."""
        return load_checked(self, weights, super().load_weights)


EntryClass = LlamaLogitShapingForCausalLM
