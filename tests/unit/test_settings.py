"""The settings in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

import pytest
from overlay_tools.errors import OverlayError
from overlay_tools.settings import load_project


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("[tool.sglang-overlay]\nplugin = []\ndefault = 1\nrevision = 1\nreplaces = []\n", "default must be a str"),
        ("[tool.sglang-overlay]\nplugin = []\ndefault = '1'\nrevision = 0\nreplaces = []\n", "must be 1 or more"),
        (
            "[tool.sglang-overlay]\nplugin = []\ndefault = '1'\nrevision = 1\nreplaces = []\nx = 1\n",
            "[tool.sglang-overlay] has an unknown setting: 'x'",
        ),
        ("[tool]\n", "has no table"),
        ("[tool", "pyproject.toml: "),
    ],
)
def test_settings_that_are_wrong_are_named(tmp_path: Path, table: str, said: str) -> None:
    (tmp_path / "pyproject.toml").write_text(table)
    with pytest.raises(OverlayError, match=r"pyproject\.toml") as caught:
        load_project(tmp_path)
    assert said in str(caught.value)
