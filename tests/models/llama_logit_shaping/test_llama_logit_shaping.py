"""What the logit transform says to a bad configuration, and to logits."""

from __future__ import annotations

import json
import math

import pytest
import torch
from engine.harness import ours
from transformers import LlamaConfig

logit_transform = ours("layers.logit_shaping").logit_transform


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"logit_transform": "hardcap"}, "logit_transform"),
        ({"logit_transform": None}, "logit_transform"),
        ({"logit_transform": "softcap"}, "logit_softcap"),
        ({"logit_transform": "softcap", "logit_softcap": 0}, "logit_softcap"),
        ({"logit_transform": "softcap", "logit_softcap": -30.0}, "logit_softcap"),
        ({"logit_transform": "softcap", "logit_softcap": math.inf}, "logit_softcap"),
        ({"logit_transform": "softcap", "logit_softcap": math.nan}, "logit_softcap"),
        ({"logit_transform": "softcap", "logit_softcap": "30"}, "logit_softcap"),
        ({"logit_transform": "softcap", "logit_softcap": True}, "logit_softcap"),
        ({"logit_transform": "none", "logit_softcap": 30.0}, "logit_softcap"),
        ({"logit_transform": "sqrt_positive", "logit_softcap": 30.0}, "logit_softcap"),
        ({"logit_transform": "sqrt_positive", "final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ],
)
def test_bad_configuration_names_the_key(keys: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^config\.json: {named} "):
        logit_transform(LlamaConfig(**keys))


def test_the_transform_is_the_configured_one() -> None:
    logits = torch.tensor([[-math.inf, -4.0, 0.0, 4.0, math.inf]])
    for keys, wanted in (
        ({"logit_transform": "softcap", "logit_softcap": 2}, [-2, -2 * math.tanh(2), 0, 2 * math.tanh(2), 2]),
        ({"logit_transform": "sqrt_positive"}, [0, 0, 0, 2, math.inf]),
    ):
        out = logit_transform(LlamaConfig(**keys))(logits, torch.empty_like(logits))
        assert out[0].tolist() == pytest.approx(wanted)
    assert logit_transform(LlamaConfig()) is None


def test_each_key_that_this_transformers_writes_is_known() -> None:
    check = ours("configs.llama_logit_shaping_keys").check
    assert check(json.loads(LlamaConfig().to_json_string())) == []
    assert len(check({"hidden_sizes": 1, "num_layers": 2, "window": None, "_note": "x"})) == 2
