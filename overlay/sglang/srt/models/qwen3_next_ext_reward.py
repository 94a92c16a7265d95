"""Qwen3-Next-Ext-Reward: scores of texts, by Qwen3-Next-Ext with another head."""

import torch
from sglang.srt.configs.qwen3_next_ext_reward import Qwen3NextExtRewardConfig
from sglang.srt.layers.pooler import EmbeddingPoolerOutput
from sglang.srt.models.qwen3_next_ext_embedding import Qwen3NextExtEmbeddingModel
from torch import nn

try:
    from sglang.srt.layers.pooler import score_and_pool
except ImportError:  # before 0.5.11, where a request has no options for scores
    score_and_pool = None


class Qwen3NextExtForSequenceClassification(Qwen3NextExtEmbeddingModel):
    """Qwen3-Next-Ext with a head that scores the last token of a text: `num_labels` scores."""

    normalize = False

    def extend(self, config: Qwen3NextExtRewardConfig) -> None:
        """Change the model as `config` says."""
        super().extend(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)

    def pool(self, hidden_states: torch.Tensor, input_ids: torch.Tensor, forward_batch) -> EmbeddingPoolerOutput:
        """Give the scores of each text, [texts, num_labels], and what else the requests ask for."""
        if score_and_pool is not None:
            return score_and_pool(self.score, self.pooler, hidden_states, forward_batch, input_ids)
        pooled = self.pooler(hidden_states, forward_batch)
        return EmbeddingPoolerOutput(embeddings=self.score(pooled.embeddings))


EntryClass = Qwen3NextExtForSequenceClassification
