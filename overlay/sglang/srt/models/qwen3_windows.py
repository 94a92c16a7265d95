"""Qwen3-Windows: upstream's Qwen3 with the windows of attention that Transformers' has and upstream's has not.

`configs/qwen3_windows.py` has the keys of config.json that say which layers have one.
"""

from sglang.srt.configs.qwen3_windows import Qwen3WindowsConfig
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_loader.checked_updates import load_checked, serve_checked
from sglang.srt.model_loader.quantised_tensors import make_check
from sglang.srt.model_loader.strict_loading import Weights
from sglang.srt.model_loader.transformers_shapes import transformers_shapes
from sglang.srt.models.qwen3 import Qwen3Attention, Qwen3ForCausalLM

try:
    from sglang.srt.runtime_context import attention_backends
except ImportError:  # releases in which the server's arguments say it themselves
    from sglang.srt.server_args import get_global_server_args

    def attention_backends() -> tuple[str | None, str | None]:
        """Return which backends compute prefills and decode steps."""
        return get_global_server_args().get_attention_backends()


class Qwen3WindowsForCausalLM(Qwen3ForCausalLM):
    """Upstream's Qwen3 with the windows of its configuration and strict weight loading."""

    def __init__(
        self, config: Qwen3WindowsConfig, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__(config, quant_config=quant_config, prefix=prefix)
        for layer, windowed in zip(self.model.layers, config.hybrid_layer_pattern, strict=True):
            if windowed and hasattr(layer, "self_attn"):  # a pipeline has the others on another rank
                keep_to_window(layer.self_attn, config.sliding_window - 1)
        serve_checked(self, make_check(self, transformers_shapes(config)))

    def get_attention_sliding_window_size(self) -> int | None:
        """Give how many tokens before its own a query sees in layers with a window, which upstream asks for."""
        if not self.config.is_hybrid_swa:
            return None
        # Upstream's Triton backend decodes with so many tokens, the query's own among them, where others add that one.
        return self.config.sliding_window - (attention_backends()[1] != "triton")

    def load_weights(self, weights: Weights, *args, **kwargs):
        """Load a checkpoint, or an update of some weights. Raises WeightsError naming each tensor that does not fit."""
        upstreams = super().load_weights
        return load_checked(self, weights, lambda fitting: upstreams(fitting, *args, **kwargs))


def keep_to_window(attention: Qwen3Attention, size: int) -> None:
    """Let the queries of a layer see `size` tokens before their own."""
    attention.attn.sliding_window_size = size
    # On AMD, a fused kernel of upstream's writes keys and values to the slots that they have where nothing is windowed.
    if hasattr(attention, "use_fused_qk_norm_rope"):
        attention.use_fused_qk_norm_rope = False


EntryClass = Qwen3WindowsForCausalLM
