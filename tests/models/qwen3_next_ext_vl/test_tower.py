"""Whether each rank has the whole vision tower, or the ranks share its weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from engine.harness import RELEASE, ours
from packaging.version import Version

from models.qwen3_next_ext_vl.test_limits import TEXT, VISION

models = ours("models.qwen3_next_ext_vl")
Qwen3NextExtVLConfig = ours("configs.qwen3_next_ext_vl").Qwen3NextExtVLConfig


class Asked(Exception):  # noqa: N818
    """Is raised in the place of building a tower, with how it was asked for."""


def tower(config: object, size: int, whole: bool, prefix: str) -> None:
    raise Asked(whole)


@pytest.mark.parametrize(("by_picture", "by_request"), [(False, False), (True, False), (False, True), (True, True)])
def test_ranks_share_a_tower_only_where_they_have_the_same_pictures(
    by_picture: bool, by_request: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "multimodal_settings", lambda: SimpleNamespace(mm_enable_dp_encoder=by_picture))
    monkeypatch.setattr(models, "is_dp_attention_enabled", lambda: by_request)
    model = type("Model", (models.Qwen3NextExtVLForConditionalGeneration,), {"tower_class": staticmethod(tower)})
    config = Qwen3NextExtVLConfig(text_config=TEXT, vision_config=VISION, image_token_id=299)
    refused = by_picture and by_request and Version("0.5.9") > RELEASE
    with pytest.raises(ValueError if refused else Asked, match="--mm-enable-dp-encoder" if refused else "") as asked:
        model(config)
    assert refused or asked.value.args == (by_picture or by_request,)
