"""The doctor says of each part of the plugin whether it took effect, and what leaves the plugin out."""

from __future__ import annotations

import os
import subprocess
import sys

from engine.harness import PACKAGE, ours


def test_the_doctor_finds_nothing_wrong() -> None:
    status, said = doctor({})
    assert status == 0, said
    assert "FAILED" not in said
    rows = ours("overlay_registry").MODELS
    for what in [name for row in rows for name in (row.model, row.draft, row.config) if name is not None]:
        assert sum(line.startswith("ok") and line.endswith(f": {what}") for line in said.splitlines()) == 1


def test_the_doctor_says_that_the_plugin_is_left_out() -> None:
    status, said = doctor({"SGLANG_PLUGINS": "none"})
    assert status == 1
    (fault,) = (line for line in said.splitlines() if line.startswith("FAILED"))
    assert "SGLANG_PLUGINS=none leaves" in fault


def doctor(environment: dict[str, str]) -> tuple[int, str]:
    """Ask the doctor in an environment; give its status and what it printed."""
    words = [sys.executable, "-m", PACKAGE, "doctor"]
    done = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout
