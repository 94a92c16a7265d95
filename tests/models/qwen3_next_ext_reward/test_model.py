"""A text's scores come with what else its request asks for, and a rank may have no text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine.harness import RELEASE, ours
from packaging.version import Version
from torch import nn

Reward = ours("models.qwen3_next_ext_reward").Qwen3NextExtForSequenceClassification


@pytest.fixture
def model() -> Any:  # noqa: ANN401
    """Make a model of which only the head counts: what goes to it is the embeddings of a request."""
    made = Reward.__new__(Reward)
    nn.Module.__init__(made)
    pooling = ours("models.qwen3_next_ext_embedding")
    made.pooler = pooling.Pooler(pooling_type=pooling.PoolingType.LAST, normalize=False)
    made.score = nn.Linear(4, 2, bias=False)
    made.config = SimpleNamespace(head_adapter_rank=0)
    made.embeddings = lambda ours, theirs: theirs
    made.model = lambda input_ids, positions, forward_batch, embeddings: embeddings
    return made


def batch(*, idle: bool = False) -> SimpleNamespace:
    """Make a batch of two texts of 2 and 3 tokens, or of none."""
    return SimpleNamespace(
        forward_mode=SimpleNamespace(is_idle=lambda: idle),
        extend_seq_lens=None if idle else torch.tensor([2, 3]),
        extend_seq_lens_cpu=None if idle else [2, 3],
        dimensions=None,
        is_prefill_only=True,
        multi_item_delimiter_indices=None,
        token_indices_to_pool=None,
        return_pooled_hidden_states=False,
    )


def test_a_request_gets_all_that_it_asks_for(model: Any) -> None:  # noqa: ANN401
    tokens, hidden, asked = torch.zeros(5, dtype=torch.long), torch.randn(5, 4), batch()
    asked.return_pooled_hidden_states = True
    answer = model(tokens, None, asked, input_embeds=hidden)
    torch.testing.assert_close(answer.embeddings, model.score(hidden[[1, 4]]))
    if Version("0.5.11") > RELEASE:
        return  # no request asks for more there
    torch.testing.assert_close(answer.pooled_hidden_states, hidden[[1, 4]])
    asked.multi_item_delimiter_indices = [torch.tensor([1]), torch.tensor([1, 2])]
    answer = model(tokens, None, asked, input_embeds=hidden)
    for got, rows in zip(answer.embeddings, ([0], [2, 3]), strict=True):
        torch.testing.assert_close(got, model.score(hidden[rows]))


def test_a_rank_without_a_text_gives_nothing(model: Any) -> None:  # noqa: ANN401
    answer = model(torch.zeros(0, dtype=torch.long), None, batch(idle=True), input_embeds=torch.zeros(0, 4))
    assert answer.embeddings.shape == (0, 4)
