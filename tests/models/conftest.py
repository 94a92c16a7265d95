"""The engine's fixtures, for tests of single models, but for those of models that this release is built without."""

from __future__ import annotations

from engine.conftest import common, one_turn, quicker_starts, reference_process
from reference.cases import left_out

__all__ = ["common", "one_turn", "quicker_starts", "reference_process"]

collect_ignore = [*left_out()]
