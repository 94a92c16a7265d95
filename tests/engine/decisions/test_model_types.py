"""The contract takes a base's model type from the name of its class in Transformers, which it does not read."""

from __future__ import annotations

import pytest
import transformers
from overlay_tools.api_check.model_types import model_type_of

DECODERS = (
    *("Cohere2", "DeepseekV3", "Gemma2", "Gemma3Text", "Glm4", "Glm4Moe", "GptOss", "Granite", "Llama", "Llama4Text"),
    *("Mistral", "Mixtral", "Olmo2", "Phi3", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe", "Qwen3Next"),
)


@pytest.mark.parametrize("name", DECODERS)
def test_the_name_of_a_class_gives_its_model_type(name: str) -> None:
    cls = getattr(transformers, f"{name}Config")
    assert model_type_of(cls.__name__) == cls.model_type
