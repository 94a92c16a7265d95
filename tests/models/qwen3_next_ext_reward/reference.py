"""The reference model of Qwen3-Next-Ext-Reward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from models.qwen3_next_ext.reference import Qwen3NextExtConfig
from models.qwen3_next_ext_embedding.reference import Qwen3NextExtEmbedding


class Qwen3NextExtReward(Qwen3NextExtEmbedding):
    """Qwen3-Next-Ext with a head that scores a text."""

    def __init__(self, config: Qwen3NextExtConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)

    def vector(self, prompt: Sequence[int]) -> torch.Tensor:
        """Give the scores of a text, [num_labels]."""
        scores: torch.Tensor = self.score(self.last(prompt))
        return scores
