"""The engine's fixtures, in an environment with upstream's own sglang and the plugin beside it."""

from __future__ import annotations

from engine.conftest import common, models, one_turn, quicker_starts, reference_process

__all__ = ["common", "models", "one_turn", "quicker_starts", "reference_process"]
