"""Qwen3-Next-Ext-Reward: the trained weights of Qwen3-Next-Ext, and a random head of three scores."""

from __future__ import annotations

from functools import partial

from reference.cases import Case, usual_faults
from reference.checkpoints import changed

from models.qwen3_next_ext.case import TRAINED, added_by
from models.qwen3_next_ext.reference import load
from models.qwen3_next_ext_embedding.case import CASE as EMBEDDING
from models.qwen3_next_ext_embedding.case import unused
from models.qwen3_next_ext_reward.reference import Qwen3NextExtReward

CONFIG = changed(
    EMBEDDING.config,
    {
        "architectures": ["Qwen3NextExtForSequenceClassification"],
        "model_type": "qwen3_next_ext_reward",
        "num_labels": 3,
    },
)

CASE = Case(
    config=CONFIG,
    trained=TRAINED,
    added=added_by(Qwen3NextExtReward),
    load=partial(load, model_class=Qwen3NextExtReward),
    vector=Qwen3NextExtReward.vector,
    unused=unused,
    state=True,
    faults=usual_faults("models.qwen3_next_ext_reward", {"num_labels": 0}),
)
