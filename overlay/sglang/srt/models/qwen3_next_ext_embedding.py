"""Qwen3-Next-Ext-Embedding: an embedding of each text, by Qwen3-Next-Ext without its head."""

import torch
from sglang.srt.configs.qwen3_next_ext_embedding import Qwen3NextExtEmbeddingConfig
from sglang.srt.layers.pooler import EmbeddingPoolerOutput, Pooler, PoolingType
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_loader.strict_loading import Shapes
from sglang.srt.models.qwen3_next_ext import Qwen3NextExtForCausalLM


class Qwen3NextExtEmbeddingModel(Qwen3NextExtForCausalLM):
    """What Qwen3-Next-Ext would give to its head at a text's last token. A checkpoint's head is left out."""

    ignored = (*Qwen3NextExtForCausalLM.ignored, "lm_head.")
    normalize = True

    def __init__(
        self, config: Qwen3NextExtEmbeddingConfig, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__(config, quant_config, prefix)
        self.lm_head = None
        self.pooler = Pooler(pooling_type=PoolingType.LAST, normalize=self.normalize)

    @classmethod
    def checkpoint_shapes(cls, config: Qwen3NextExtEmbeddingConfig) -> Shapes:
        """List an unquantised checkpoint's tensors but for those that are ignored: name to shape."""
        shapes = super().checkpoint_shapes(config)
        return {name: shape for name, shape in shapes.items() if not name.startswith(cls.ignored)}

    @torch.no_grad()
    def forward(
        self, input_ids, positions, forward_batch, inputs_embeds=None, input_embeds=None, **kwargs
    ) -> EmbeddingPoolerOutput:
        """Give the embedding of each text, [texts, hidden_size], of length 1."""
        embeddings = self.embeddings(inputs_embeds, input_embeds)
        hidden_states = self.model(input_ids, positions, forward_batch, embeddings)
        if forward_batch.forward_mode.is_idle():  # this rank of attention's data in parallel has no text
            return EmbeddingPoolerOutput(embeddings=hidden_states[:0])
        if self.config.head_adapter_rank:
            hidden_states = self.head_adapter(hidden_states)
        return self.pool(hidden_states, input_ids, forward_batch)

    def pool(self, hidden_states: torch.Tensor, input_ids: torch.Tensor, forward_batch) -> EmbeddingPoolerOutput:
        """Make a text's answer of what would go to the head, [tokens, hidden_size]."""
        return self.pooler(hidden_states, forward_batch)


EntryClass = Qwen3NextExtEmbeddingModel
