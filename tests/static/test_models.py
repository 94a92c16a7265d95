"""A model comes and goes with its own files: what the overlay and its checks have of it is nowhere else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from overlay_tools.api_check.contract import check_contract, unfit
from overlay_tools.errors import BuildError
from overlay_tools.settings import cache_dir, load_project
from overlay_tools.upstream.lockfile import load_lock
from overlay_tools.upstream.source_tree import open_source_tree
from overlay_tools.wheels.plugin import build_plugin

ROOT = Path(__file__).parents[2]
DEFAULT = load_project(ROOT).default
OVERLAY = Path("overlay", "sglang", "srt")
FILES = ("models/{}.py", "configs/{}_keys.py", "overlay_models/{}.py")
ROWS = "import sglang.srt.overlay_registry as r; print(*[row.architecture for row in r.MODELS])"


def files_of(root: Path, model: str) -> list[Path]:
    """List the files of a model that has a module, keys and a row."""
    return [root / OVERLAY / name.format(model) for name in FILES]


def alone() -> str:
    """Find a model that has just these files, and that no other derives from."""
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / OVERLAY).rglob("*.py")}
    for row in sorted((ROOT / OVERLAY / "overlay_models").glob("[!_]*.py")):
        own = files_of(ROOT, row.stem)
        users = {path for path, text in texts.items() if f".{row.stem} " in text or f".{row.stem}_keys " in text}
        if all(path.exists() for path in own) and users <= set(own):
            return row.stem
    raise LookupError("there is no model to copy")


MODEL = alone()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy what the overlay is built and checked with."""
    left_out = shutil.ignore_patterns("__pycache__")
    for name in ("overlay", "patches", "ci", "tests/models"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=left_out)
    for name in ("pyproject.toml", "upstream.lock", "LICENSE", "NOTICE"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def models(root: Path, version: str) -> list[str]:
    """List the models of an overlay of which all fits a release."""
    project = load_project(root)
    with open_source_tree(load_lock(project.lock)[version], cache_dir()) as sources:
        assert unfit(check_contract(project, sources)) == []
    done = subprocess.run(
        [sys.executable, "-c", ROWS], cwd=root / "overlay", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def has_plugin(root: Path) -> bool:
    """Tell whether an overlay can be a plugin, which one that replaces a file of upstream's cannot, for example."""
    try:
        build_plugin(load_project(root))
    except BuildError:
        return False
    return True


@pytest.mark.parametrize("version", [DEFAULT])
def test_a_model_comes_and_goes_with_its_files_alone(copy: Path, version: str) -> None:
    every, plugin = models(copy, version), has_plugin(copy)
    row = files_of(copy, MODEL)[-1].read_text(encoding="utf-8")
    (own,) = [name for name in every if f":{name}" in row]
    for old, new in zip(files_of(copy, MODEL), files_of(copy, "a_copy"), strict=True):
        text = old.read_text(encoding="utf-8").replace(MODEL, "a_copy").replace(own, "CopiedForCausalLM")
        new.write_text(text, encoding="utf-8")
    assert models(copy, version) == ["CopiedForCausalLM", *every]
    assert has_plugin(copy) == plugin
    for file in files_of(copy, MODEL):
        file.unlink()
    shutil.rmtree(copy / "tests" / "models" / MODEL)
    assert models(copy, version) == ["CopiedForCausalLM", *(name for name in every if name != own)]
    assert has_plugin(copy) == plugin
