"""Requests that a release would answer wrongly are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from engine.harness import RELEASE, ours
from packaging.version import Version
from sglang.srt.managers.io_struct import GenerateReqInput
from transformers import PretrainedConfig

from models.qwen3_next_ext_vl.test_limits import TEXT, VISION

check_request = ours("overlay_registry").check_request
Qwen3NextExtVLConfig = ours("configs.qwen3_next_ext_vl").Qwen3NextExtVLConfig
OURS = Qwen3NextExtVLConfig(text_config=TEXT, vision_config=VISION, image_token_id=299)
PICTURE, SESSION = {"image_data": ["picture.png"]}, {"session_params": {"id": "one"}}


@pytest.mark.parametrize(
    ("config", "asked", "refused"),
    [
        (OURS, {**PICTURE, **SESSION}, True),
        (OURS, PICTURE, False),
        (OURS, SESSION, False),
        (PretrainedConfig(), {**PICTURE, **SESSION}, False),  # another's model, which may find its pictures otherwise
    ],
)
def test_pictures_of_a_session_are_refused_where_they_would_be_lost(config: Any, asked: Any, refused: bool) -> None:  # noqa: ANN401
    manager = SimpleNamespace(is_generation=True, model_config=SimpleNamespace(hf_config=config))
    request = GenerateReqInput(input_ids=[1, 2], **asked)
    if refused and Version("0.5.10") > RELEASE:
        with pytest.raises(ValueError, match="send the whole conversation without session_params"):
            check_request(manager, request)
    else:
        check_request(manager, request)
