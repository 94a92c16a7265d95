"""A model comes and goes with its own files: what the overlay and its checks have of it is nowhere else."""

from __future__ import annotations

import re
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
ADDED = {
    "models/added.py": """\
from sglang.srt.models.llama import LlamaForCausalLM


class AddedForCausalLM(LlamaForCausalLM):
    def load_weights(self, weights):
        return super().load_weights(weights)


EntryClass = AddedForCausalLM
""",
    "overlay_models/added.py": """\
from sglang.srt.overlay_models import OverlayModel

ROW = OverlayModel(model="sglang.srt.models.added:AddedForCausalLM")
""",
}
ROWS = "import sglang.srt.overlay_registry as r; print(*[row.architecture for row in r.MODELS])"


def files_of(root: Path, model: str) -> list[Path]:
    """List the files of a model: those of its name, its keys and its draft."""
    names = {f"{model}{part}.py" for part in ("", "_keys", "_mtp")}
    return [path for path in (root / OVERLAY).rglob("*.py") if path.name in names]


def removable() -> list[str]:
    """List the models from which no other derives, by the names of their rows' files."""
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / OVERLAY).rglob("*.py")}
    found = []
    for row in sorted((ROOT / OVERLAY / "overlay_models").glob("[!_]*.py")):
        own = files_of(ROOT, row.stem)
        uses = re.compile(rf"\.({'|'.join(path.stem for path in own)}) ")
        if not any(uses.search(text) for path, text in texts.items() if path not in own):
            found.append(row.stem)
    return found


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
    for name, text in ADDED.items():
        (copy / OVERLAY / name).write_text(text, encoding="utf-8")
    assert models(copy, version) == ["AddedForCausalLM", *every]
    assert has_plugin(copy) == plugin
    for model in ("added", *removable()):
        row = (copy / OVERLAY / "overlay_models" / f"{model}.py").read_text(encoding="utf-8")
        for file in files_of(copy, model):
            file.unlink()
        shutil.rmtree(copy / "tests" / "models" / model, ignore_errors=True)
        every = [name for name in every if f":{name}" not in row]
        assert models(copy, version) == every
        assert has_plugin(copy) == plugin
