"""The draft of Qwen3-Next-Ext: upstream's multi-token-prediction head with the extensions that concern it.

Its one layer has full attention and the model's router. Its answers go through the model's adapter, head and transform.
"""

from sglang.srt.configs.qwen3_next_ext import Qwen3NextExtConfig
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_loader.checked_updates import load_checked
from sglang.srt.model_loader.strict_loading import Shapes, Weights
from sglang.srt.models.qwen3_next_ext import Qwen3NextExtensions
from sglang.srt.models.qwen3_next_mtp import Qwen3NextForCausalLMMTP


class Qwen3NextExtForCausalLMMTP(Qwen3NextExtensions, Qwen3NextForCausalLMMTP):
    """Upstream's draft with the extensions of the model's configuration and strict weight loading."""

    def __init__(
        self, config: Qwen3NextExtConfig, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        config.check_extensions()
        super().__init__(config, quant_config, prefix)
        self.extend_checked(self.config, ("model.", "lm_head."), draft="mtp.")  # these two come from the model

    @classmethod
    def checkpoint_shapes(cls, config: Qwen3NextExtConfig) -> Shapes:
        """List what the draft takes from an unquantised checkpoint: name to shape, before any sharding."""
        hidden = config.hidden_size
        layer = cls.layer_shapes(config, "attention")
        return {
            "mtp.fc.weight": (hidden, 2 * hidden),
            "mtp.pre_fc_norm_embedding.weight": (hidden,),
            "mtp.pre_fc_norm_hidden.weight": (hidden,),
            "mtp.norm.weight": (hidden,),
            **{f"mtp.layers.0.{name}": shape for name, shape in layer.items()},
            **cls.head_adapter_shapes(config),
        }

    def forward(self, input_ids, positions, forward_batch, input_embeds=None, **kwargs):
        """Propose from tokens, or from embeddings [tokens, hidden_size], which a request may bring to a prefill."""
        if input_embeds is not None:
            # Upstream has moved the tokens by one, so that the last is the one that the model has chosen.
            of_tokens = self.model.embed_tokens(input_ids)
            last = forward_batch.extend_seq_lens.cumsum(0) - 1
            input_embeds = input_embeds.to(of_tokens.dtype).roll(-1, 0)
            input_embeds[last] = of_tokens[last]
        return super().forward(input_ids, positions, forward_batch, input_embeds, **kwargs)

    def load_weights(self, weights: Weights, is_mtp: bool = True) -> None:
        """Load a checkpoint's draft, or an update. Raises WeightsError naming each tensor that does not fit."""
        load_checked(self, weights, super().load_weights)


EntryClass = Qwen3NextExtForCausalLMMTP
