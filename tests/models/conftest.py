"""The engine's fixtures, for tests of single models."""

from __future__ import annotations

from engine.conftest import quicker_starts

__all__ = ["quicker_starts"]
