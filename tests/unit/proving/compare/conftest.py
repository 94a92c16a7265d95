from __future__ import annotations

from pathlib import Path

import pytest
from overlay_tools.engines.server import Server
from overlay_tools.proving.compare import engine

from unit.proving.compare.stand_in import StandIn


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setattr(engine, "post", made.post)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return made


@pytest.fixture
def server(tmp_path: Path) -> Server:
    (tmp_path / "log").write_text("its last words\n")
    return Server(Path("python"), tmp_path, [], env={}, log=tmp_path / "log")
