"""Qwen3-Next-Ext-Reward: scores of texts, by Qwen3-Next-Ext with another head."""

import torch
from sglang.srt.configs.qwen3_next_ext_reward import Qwen3NextExtRewardConfig
from sglang.srt.layers.pooler import EmbeddingPoolerOutput
from sglang.srt.models.qwen3_next_ext_embedding import Qwen3NextExtEmbeddingModel
from torch import nn


class Qwen3NextExtForSequenceClassification(Qwen3NextExtEmbeddingModel):
    """Qwen3-Next-Ext with a head that scores the last token of a text: `num_labels` scores."""

    normalize = False

    def extend(self, config: Qwen3NextExtRewardConfig) -> None:
        """Change the model as `config` says."""
        super().extend(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)

    @torch.no_grad()
    def forward(self, *args, **kwargs) -> EmbeddingPoolerOutput:
        """Give the scores of each text, [texts, num_labels]."""
        return EmbeddingPoolerOutput(embeddings=self.score(super().forward(*args, **kwargs).embeddings))


EntryClass = Qwen3NextExtForSequenceClassification
