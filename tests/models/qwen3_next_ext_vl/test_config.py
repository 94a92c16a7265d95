"""What Qwen3-Next-Ext-VL's configuration takes from that of its text model."""

from __future__ import annotations

from typing import Any

import pytest
from engine.harness import ours

from models.qwen3_next_ext_vl.case import CONFIG

TEXT, ENDS = CONFIG["text_config"], {"eos_token_id": [0, 3]}


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"text_config": {**TEXT, **ENDS}}, [0, 3]),
        ({"text_config": {**TEXT, **ENDS}, "eos_token_id": None}, [0, 3]),
        ({"text_config": {**TEXT, **ENDS}, "eos_token_id": 1}, 1),
        ({"text_config": TEXT, **ENDS}, [0, 3]),
    ],
)
def test_what_ends_an_answer_may_be_said_of_the_text_model(said: dict[str, Any], wanted: object) -> None:
    """Upstream asks the outer configuration alone."""
    rest = {key: value for key, value in CONFIG.items() if key not in ("text_config", "eos_token_id")}
    assert ours("configs.qwen3_next_ext_vl").Qwen3NextExtVLConfig(**rest, **said).eos_token_id == wanted
