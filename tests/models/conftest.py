"""The engine's fixtures, for tests of single models, but for those of models that this release is built without."""

from __future__ import annotations

from engine.conftest import quicker_starts, report_what_is_left_out
from reference.cases import left_out

__all__ = ["quicker_starts", "report_what_is_left_out"]

collect_ignore = [*left_out()]
