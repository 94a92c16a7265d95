"""A plugin project, as `new --project` makes it, installed with pip beside upstream's sglang: its own tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The tool makes it in its own environment, with what this one's Transformers has of the base.
MAKE = """\
import sys
from pathlib import Path
from overlay_tools.scaffold.base import find_base
from overlay_tools.scaffold.model import NewModel, architecture_of
from overlay_tools.scaffold.project import make_project, name_project
from overlay_tools.settings import load_project

kind, base, folder, python = sys.argv[1:]
project = load_project(Path.cwd())
found = find_base(project, base, "my_model", architecture_of("my_model", kind), Path(python))
new = NewModel(name="my_model", kind=kind, base=found)
make_project(project, new, name_project(project, Path(folder)), Path(python))
"""
CHANGE = ("        own: Shapes = {}\n", "        self.model.norm.variance_epsilon = 1.0\n")


class Installed:
    """A project, and an environment that holds all that this one does and, in site-packages, the project."""

    def __init__(self, folder: Path, kind: str, base: str) -> None:
        tool = shutil.which("overlay-tools")
        assert tool is not None, "the tool is not on PATH: run `nox -s test-plugin-VERSION`"
        self.environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.folder, self.python = folder / f"acme-{kind}", folder / "env" / "bin" / "python"
        self.run(Path(tool).with_name("python"), "-c", MAKE, kind, base, self.folder, sys.executable)
        self.run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, folder / "env")
        (packages,) = (folder / "env").glob("lib/python*/site-packages")
        (packages / "upstream.pth").write_text(f"{distribution('sglang').locate_file('')}\n", encoding="utf-8")

    def install(self, *how: str) -> None:
        uv = ["uv", "pip", "install", "--quiet", "--no-deps", "--python", str(self.python)]
        self.run(sys.executable, "-m", *uv, *how, self.folder)

    def test(self, chosen: str) -> int:
        """Run some of the project's tests; give pytest's status."""
        words = [str(self.python), "-m", "pytest", "-W", "default", "-k", chosen]
        return subprocess.run(words, cwd=self.folder, env=self.environment, check=False).returncode

    def run(self, *words: str | Path) -> None:
        subprocess.run(words, cwd=ROOT, env=self.environment, check=True)


def test_a_model_of_text_is_served_and_its_tests_find_a_change(tmp_path: Path) -> None:
    project = Installed(tmp_path, "text", "LlamaForCausalLM")
    project.install()
    assert project.test("doctor or http") == pytest.ExitCode.OK
    project.install("--editable")
    (model,) = project.folder.glob("src/*/models/my_model.py")
    text = model.read_text(encoding="utf-8")
    assert CHANGE[0] in text
    model.write_text(text.replace(CHANGE[0], "".join(CHANGE)), encoding="utf-8")
    assert project.test("http and test_generate") == pytest.ExitCode.TESTS_FAILED


def test_a_model_of_embeddings_is_served(tmp_path: Path) -> None:
    project = Installed(tmp_path, "embedding", "Qwen3ForCausalLM")
    project.install()
    assert project.test("vectors and chunks") == pytest.ExitCode.OK
