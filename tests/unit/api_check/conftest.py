from __future__ import annotations

import pytest

from unit.api_check.derived import derive
from unit.conftest import Miniature


@pytest.fixture
def ours(mini: Miniature) -> Miniature:
    """Return a project whose overlay derives a model from one of upstream's."""
    return derive(mini)
