from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from unit.overlay.installed import Site, install_plugin


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_plugin(tmp_path_factory.mktemp("attach"))


@pytest.fixture
def site(whole: Path, tmp_path: Path) -> Site:
    return Site(shutil.copytree(whole, tmp_path / "env", symlinks=True))
