from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from overlay_tools.engines.environment import ensure_environment
from overlay_tools.errors import ToolError
from overlay_tools.wheels.builder import BuiltWheel, build_kernel

from unit.conftest import Miniature


@pytest.fixture
def wheel(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> BuiltWheel:
    """Return a kernel wheel that requires nothing, so that no index is needed."""
    monkeypatch.setattr("overlay_tools.wheels.builder._KERNEL_METADATA", "")
    monkeypatch.setenv("UV_OFFLINE", "1")
    return build_kernel(mini.project, mini.lock["1.0"])


def kernel_of(python: Path) -> str:
    code = "import sgl_kernel; print(sgl_kernel.KERNEL)"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_it_is_made_once_and_follows_its_wheels(mini: Miniature, wheel: BuiltWheel) -> None:
    folder = mini.root / ".env"
    python = ensure_environment(folder, sys.executable, [wheel.path], [])
    assert kernel_of(python) == "1"
    made = python.lstat().st_mtime_ns
    (folder / "mark").write_text("kept while the environment is")
    assert ensure_environment(folder, sys.executable, [wheel.path], []) == python
    mini.write("overlay/sgl_kernel/__init__.py", "KERNEL = 2\n")
    ensure_environment(folder, sys.executable, [build_kernel(mini.project, mini.lock["1.0"]).path], [])
    assert kernel_of(python) == "2"
    assert (folder / "mark").exists()
    assert python.lstat().st_mtime_ns == made


def test_one_whose_making_was_cut_short_is_made_anew(mini: Miniature, wheel: BuiltWheel) -> None:
    folder = mini.root / ".env"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "half").write_text("")
    assert kernel_of(ensure_environment(folder, sys.executable, [wheel.path], [])) == "1"
    assert not (folder / "lib" / "half").exists()


def test_what_cannot_be_installed_is_named_and_tried_again(mini: Miniature, wheel: BuiltWheel) -> None:
    folder = mini.root / ".env"
    with pytest.raises(ToolError, match="no-such-distribution"):
        ensure_environment(folder, sys.executable, [wheel.path], ["no-such-distribution"])
    assert kernel_of(ensure_environment(folder, sys.executable, [wheel.path], [])) == "1"


def test_an_absent_interpreter_is_named(mini: Miniature, wheel: BuiltWheel) -> None:
    with pytest.raises(ToolError, match=r"uv venv .*absent/python"):
        ensure_environment(mini.root / ".env", str(mini.root / "absent/python"), [wheel.path], [])
