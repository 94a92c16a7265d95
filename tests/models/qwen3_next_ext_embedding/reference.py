"""The reference model of Qwen3-Next-Ext-Embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from models.qwen3_next_ext.reference import Qwen3NextExt, Qwen3NextExtConfig


class Qwen3NextExtEmbedding(Qwen3NextExt):
    """Qwen3-Next-Ext without its head."""

    def __init__(self, config: Qwen3NextExtConfig) -> None:
        super().__init__(config)
        self.lm_head = nn.Identity()

    def last(self, prompt: Sequence[int]) -> torch.Tensor:
        """Give what would go to the head at the last token of a text, [hidden_size]."""
        tokens = torch.tensor([list(prompt)], device=self.device)
        hidden: torch.Tensor = self.head_adapter(self.model(tokens).last_hidden_state)
        return hidden[0, -1]

    def vector(self, prompt: Sequence[int]) -> torch.Tensor:
        """Give the embedding of a text, [hidden_size]."""
        return functional.normalize(self.last(prompt), dim=-1)
