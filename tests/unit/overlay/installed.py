"""An environment with the plugin, installed beside stand-ins for sglang and transformers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from overlay_tools.wheels.plugin import build_plugin

from unit.conftest import REPOSITORY, make_miniature
from unit.overlay.published import SGLANG

OVERLAY = {
    "configs/ext.py": """\
from sglang.srt.overlay_registry import alias
class ExtConfig:
    model_type = "ext"
    def __init__(self, architecture):
        self.architectures = [architecture]
        self.own_key = 1
        alias(self)
""",
    "multimodal/processors/ext.py": """\
from sglang.srt.models.ext import ExtForCausalLM
class Processor: models = (ExtForCausalLM,)
""",
    "overlay_models/plain.py": """\
from sglang.srt.overlay_models import OverlayModel
ROW = OverlayModel(model="sglang.srt.models.plain:PlainForCausalLM", arguments={"page_size": 16})
""",
    "overlay_models/ext.py": """\
from sglang.srt.overlay_models import OverlayModel
ROW = OverlayModel(
    model="sglang.srt.models.ext:ExtForCausalLM",
    base="BaseForCausalLM",
    config="sglang.srt.configs.ext:ExtConfig",
    extensions=("own_key",),
    multimodal=True,
)
""",
    "models/plain.py": "class PlainForCausalLM: pass\nEntryClass = PlainForCausalLM\n",
    "models/ext.py": "class ExtForCausalLM: pass\nEntryClass = [ExtForCausalLM]\n",
}
OURS = {
    "PlainForCausalLM": "came up with sglang_overlay_plugin.models.plain.PlainForCausalLM\n",
    "ExtForCausalLM": "came up with sglang_overlay_plugin.models.ext.ExtForCausalLM\n",
}
REGISTER = "import sglang_overlay_plugin\nsglang_overlay_plugin.register()\n"
SERVE = "from sglang.launch_server import serve\nprint(serve('PlainForCausalLM'), flush=True)\n"
VARIABLE = {"SGLANG_EXTERNAL_MODEL_PACKAGE": "sglang_overlay_plugin.models"}
LAUNCH = ("-m", "sglang.launch_server", "PlainForCausalLM")
PLUGIN = "sglang_overlay_plugin"
DIST_INFO = f"{PLUGIN}-3.dist-info"
START = f"{PLUGIN}_start.py"


@dataclass
class Site:
    """An environment with sglang, transformers and the plugin."""

    folder: Path

    @property
    def packages(self) -> Path:
        (folder,) = self.folder.glob("lib/python*/site-packages")
        return folder

    def write(self, name: str, text: str | None) -> None:
        """Write a file of the environment, or with None take it away."""
        path = self.packages / name
        if text is None:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run its Python as nothing but `environment` says."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SGLANG", "PYTHON"))}
        env = kept | {"PYTHONDONTWRITEBYTECODE": "1"} | environment
        python = str(self.folder / "bin" / "python")
        return subprocess.run(
            [python, *words], env=env, cwd=self.folder, capture_output=True, text=True, check=False, timeout=60
        )

    def printed(self, *words: str, **environment: str) -> str:
        done = self.run(*words, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout


SHARED = (
    "overlay_registry.py",
    "overlay_claims.py",
    "overlay_defaults.py",
    "overlay_models/__init__.py",
    "configs/config_keys.py",
)


def overlay_files() -> dict[str, str]:
    """Give the files of a small overlay by their paths in sglang/srt: the checkout's own registry, and two models."""
    ours = REPOSITORY / "overlay" / "sglang" / "srt"
    return {**OVERLAY, **{name: (ours / name).read_text(encoding="utf-8") for name in SHARED}}


def make_plugin(folder: Path, files: Mapping[str, str], settings: str = "") -> Path:
    """Build a plugin from the checkout's own attaching code and an overlay's files; `settings` say its names."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        mini = make_miniature(folder, monkeypatch)
    text = (mini.root / "pyproject.toml").read_text()
    mini.write("pyproject.toml", text.replace("plugin = []", 'plugin = ["1.0", "1.1"]') + settings)
    shutil.copytree(
        REPOSITORY / "overlay" / PLUGIN, mini.root / "overlay" / PLUGIN, ignore=shutil.ignore_patterns("__pycache__")
    )
    mini.write(f"overlay/{START}", (REPOSITORY / "overlay" / START).read_text(encoding="utf-8"))
    for name, content in files.items():
        mini.write(f"overlay/sglang/srt/{name}", content)
    return build_plugin(mini.project).path


def pip(site: Site, *words: str | Path) -> None:
    """Do with an environment's packages what uv's pip does."""
    uv = [sys.executable, "-m", "uv", "pip", words[0], "--quiet", "--offline", "--no-cache"]
    subprocess.run([*uv, "--python", site.folder / "bin" / "python", *words[1:]], check=True)


def install_plugin(folder: Path) -> Path:
    """Make an environment with the stand-ins and a plugin of two models."""
    site = Site(folder / "env")
    folder.mkdir(exist_ok=True)
    venv.EnvBuilder(symlinks=True).create(site.folder)
    for name, content in SGLANG.items():
        site.write(name, content)
    pip(site, "install", "--no-deps", make_plugin(folder / "project", overlay_files()))
    return site.folder


def ways(name: str = "PlainForCausalLM") -> Mapping[str, tuple[tuple[str, ...], dict[str, str]]]:
    """Give the words and the environment of each way in which the plugin is loaded."""
    by_hand = REGISTER + SERVE.replace("PlainForCausalLM", name)
    launch = (*LAUNCH[:2], name)
    return {"entry point": (launch, {}), "variable": (launch, VARIABLE), "by hand": (("-c", by_hand), {})}


def beside(site: Site, folder: Path) -> dict[str, str]:
    """Move the plugin to a folder that is on the path and not a site-packages; give the environment for that."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    for path in site.packages.glob(f"{PLUGIN}*"):
        path.rename(elsewhere / path.name)
    return {"PYTHONPATH": str(elsewhere)}
