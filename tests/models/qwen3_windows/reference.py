"""The reference model of Qwen3-Windows: Transformers' own Qwen3, whose windows upstream's takes no notice of."""

from __future__ import annotations

from transformers import Qwen3ForCausalLM


class Qwen3Windows(Qwen3ForCausalLM):  # type: ignore[misc]  # transformers has no types
    """Transformers' Qwen3ForCausalLM."""
