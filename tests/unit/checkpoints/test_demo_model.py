"""The checkpoint that is served where none is named."""

from __future__ import annotations

from pathlib import Path

from overlay_tools.checkpoints.demo_model import make_demo_model


def test_it_is_made_once_by_the_script_of_the_checkout(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nmkdir -p "$2" && touch "$2/config.json"\n')
    python.chmod(0o755)
    model = make_demo_model(tmp_path, python)
    assert (model / "config.json").is_file()
    assert make_demo_model(tmp_path, python) == model
    script = tmp_path / "tests" / "reference" / "checkpoints.py"
    assert (tmp_path / "calls").read_text() == f"{script} {model}.part\n"
    (model / "config.json").unlink()  # as if its making had been cut short
    (model / "weights").write_text("half")
    assert sorted(path.name for path in make_demo_model(tmp_path, python).iterdir()) == ["config.json"]
