"""How large pictures may be to Qwen3-Next-Ext-VL is said by config.json, and over it by --mm-process-config."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from engine.harness import ours
from PIL import Image

processors = ours("multimodal.processors.qwen3_next_ext_vl")
Qwen3NextExtVLConfig = ours("configs.qwen3_next_ext_vl").Qwen3NextExtVLConfig

TEXT = {"vocab_size": 300, "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
VISION = {"hidden_size": 96, "num_attention_heads": 4, "patch_size": 8, "min_pixels": 64 * 64, "max_pixels": 512 * 512}


@pytest.fixture(autouse=True)
def without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what upstream's constructor needs of a running server."""

    def construct(self: Any, hf_config: Any, *_args: object) -> None:  # noqa: ANN401
        self.hf_config = hf_config

    monkeypatch.setattr(processors.BaseMultimodalProcessor, "__init__", construct)


def make(said: Mapping[str, Any] | None) -> Any:  # noqa: ANN401
    """Make the processor of a server with this --mm-process-config."""
    config = Qwen3NextExtVLConfig(text_config=TEXT, vision_config=VISION, image_token_id=299)
    return processors.Qwen3NextExtVLProcessor(config, SimpleNamespace(mm_process_config=said), None)


@pytest.mark.parametrize(
    ("said", "size", "sides"),
    [
        (None, (1024, 1024), (512, 512)),
        ({"video": {}}, (16, 16), (64, 64)),
        ({"image": {"max_pixels": 65536}}, (1024, 1024), (256, 256)),
        ({"image": {"max_pixels": 65536}}, (128, 2048), (1024, 64)),
        ({"image": {"max_pixels": 1024 * 1024}}, (1024, 1024), (1024, 1024)),
        ({"image": {"min_pixels": 128 * 128}}, (16, 16), (128, 128)),
        ({"image": {"min_pixels": 256, "max_pixels": 256}}, (40, 40), (16, 16)),
    ],
)
def test_pictures_are_fitted_to_the_limits(
    said: Mapping[str, Any] | None, size: tuple[int, int], sides: tuple[int, int]
) -> None:
    patches, grid = make(said).patches_of(Image.new("RGB", size))
    assert tuple(8 * side for side in grid) == sides
    assert len(patches) == grid[0] * grid[1]


HAS = "--mm-process-config: this model has image.min_pixels and image.max_pixels, not"


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ({"image": {"max_pixel": 65536}}, f"{HAS} image.max_pixel"),
        ({"image": {"size": {"longest_edge": 9}}}, f"{HAS} image.size"),
        ({"video": {"fps": 2}}, f"{HAS} video.fps"),
        ({"audio": {"max_pixels": 65536}}, f"{HAS} audio.max_pixels"),
        ({"max_pixels": 65536}, f"{HAS} max_pixels"),
        (
            {"image": {"max_pixels": 65536.0}},
            "--mm-process-config: image.max_pixels must be a whole number, not 65536.0",
        ),
        ({"image": {"min_pixels": True}}, "--mm-process-config: image.min_pixels must be a whole number, not True"),
        (
            {"image": {"max_pixels": 4095}},
            "--mm-process-config: of image, min_pixels (4096) must be from 1 to max_pixels (4095), "
            "and that at least the 256 of a token",
        ),
        ({"image": {"min_pixels": 0}}, "--mm-process-config: of image, min_pixels (0) must be from 1"),
        ({"image": {"min_pixels": 1, "max_pixels": 255}}, "max_pixels (255), and that at least the 256 of a token"),
    ],
)
def test_any_other_setting_is_refused_by_its_name(said: Mapping[str, Any], refused: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the text is compared
        make(said)
    assert refused in str(caught.value)


def test_a_request_cannot_set_them() -> None:
    asked = SimpleNamespace(mm_processor_kwargs={"max_pixels": 65536})
    with pytest.raises(ValueError, match="mm_processor_kwargs"):
        asyncio.run(make(None).process_mm_data_async([], None, [], asked))
