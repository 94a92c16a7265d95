"""Qwen3-Next-Ext-Embedding: the trained weights of Qwen3-Next-Ext without its head."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from reference.cases import Case, read_config, usual_faults
from reference.checkpoints import changed

from models.qwen3_next_ext.case import TRAINED
from models.qwen3_next_ext.case import unused as unused_in_ext
from models.qwen3_next_ext.reference import load
from models.qwen3_next_ext_embedding.reference import Qwen3NextExtEmbedding

NAMES = {"architectures": ["Qwen3NextExtEmbeddingModel"], "model_type": "qwen3_next_ext_embedding"}


def unused(config: Mapping[str, Any]) -> list[str]:
    """List parts of the names of tensors that a configuration does not need."""
    return [*unused_in_ext(config), "lm_head."]


CASE = Case(
    config=changed(read_config(TRAINED), NAMES | {"logit_transform": None, "logit_softcap": None}),
    trained=TRAINED,
    load=partial(load, model_class=Qwen3NextExtEmbedding),
    vector=Qwen3NextExtEmbedding.vector,
    unused=unused,
    state=True,
    faults=usual_faults("models.qwen3_next_ext_embedding", {"logit_transform": "softcap"}),
)
