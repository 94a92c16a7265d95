"""Fixtures of the tests of what a person does with hooks."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.upstream.conftest import index, plain_installers

__all__ = ["index", "plain_installers"]  # fixtures of other tests that these use too


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "from elsewhere"
    folder.mkdir()
    return folder
