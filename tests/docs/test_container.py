"""The commands of ci/container/Dockerfile, in an environment that is made as upstream makes its image's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from unit.conftest import make_miniature

from docs.pages import ROOT

DOCKERFILE = ROOT / "ci" / "container" / "Dockerfile"
SOURCE = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "sglang"
version = "1.0"
[project.scripts]
sglang = "sglang.loader:last"
[tool.setuptools]
packages = ["sglang"]
"""


@dataclass
class Image:
    """An environment as that of upstream's image, and a checkout as the build has it."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        return self.root / "usr" / "bin" / "python3"

    @property
    def source(self) -> Path:
        return self.root / "sgl-workspace" / "sglang" / "python"

    @property
    def checkout(self) -> Path:
        return self.root / "checkout"

    def build(self) -> subprocess.CompletedProcess[str]:
        """Run what the Dockerfile runs, as a user who names a release of the miniature's."""
        script, target = run_instruction()
        env = {**self.env, "RELEASE": "1.0"}
        words = ["/bin/sh", "-c", script.replace(target, str(self.checkout))]
        return subprocess.run(
            words, cwd=self.root / "sgl-workspace", env=env, capture_output=True, text=True, check=False
        )

    def ask(self, code: str) -> str:
        words = [str(self.python), "-c", code]
        done = subprocess.run(words, cwd=self.root, env=self.env, capture_output=True, text=True, check=True)
        return done.stdout.strip()


def run_instruction() -> tuple[str, str]:
    """Return the commands of the only RUN of the Dockerfile, and the path where the checkout is mounted for them."""
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", "")
    (line,) = re.findall(r"^RUN (.*)$", text, re.MULTILINE)
    mounted = re.fullmatch(r"--mount=type=bind,target=(\S+) (.*)", line)
    assert mounted
    return mounted[2], mounted[1]


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Image:
    image = Image(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "usr"], check=True)
    image.env = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
        "PATH": os.pathsep.join([str(tmp_path / "usr" / "bin"), os.environ["PATH"]]),
    }
    (image.source / "sglang").mkdir(parents=True)
    (image.source / "pyproject.toml").write_text(SOURCE)
    (image.source / "sglang" / "__init__.py").write_text("SOURCE = True\n")
    (image.source / "sglang" / "loader.py").write_text("def last(): pass\n")
    words = ["-m", "pip", "install", "--quiet", "--editable", "python"]
    subprocess.run([image.python, *words], cwd=image.source.parent, env=image.env, check=True)
    copy_context(image.checkout)
    mini = make_miniature(tmp_path / "mini", monkeypatch)
    built = mini.build("1.0").path
    (image.checkout / "dist").mkdir(exist_ok=True)
    name = "-".join([*built.stem.split("-")[:2], "py3-none-any.whl"])  # it pretends to be for one Python
    shutil.copy(built, image.checkout / "dist" / name)
    return image


def copy_context(folder: Path) -> None:
    """Copy what the Dockerfile's ignore file lets through of this checkout, but for its wheels."""
    ignored, *kept = (
        line
        for line in DOCKERFILE.with_name("Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
    assert ignored == "*"
    for pattern in kept:
        assert pattern.startswith("!")
        for path in ROOT.glob(pattern[1:]):
            there = folder / path.relative_to(ROOT)
            there.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, there, ignore=shutil.ignore_patterns("__pycache__"))
            elif path.suffix != ".whl":
                shutil.copy(path, there)
    assert "!dist/sglang-*.whl" in kept


def state(folder: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_our_wheel_takes_the_place_of_the_editable_one_and_nothing_else_stays(image: Image, tmp_path: Path) -> None:
    assert image.ask("import sglang; print(sglang.__file__)").startswith(str(image.source))
    packages = set(image.ask(LISTED).split())
    before = state(image.checkout)
    (tmp_path / "scratch").mkdir()
    image.env["TMPDIR"] = str(tmp_path / "scratch")
    done = image.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^sglang 1\.0\+overlay\.3 in .*: \d+ files, no differences$", done.stdout, re.MULTILINE)
    assert image.ask("import sglang.models.ours as ours; print(ours.OURS)") == "1"
    assert set(image.ask(LISTED).split()) == packages - {"sglang==1.0"} | {"sglang==1.0+overlay.3"}
    assert list((tmp_path / "scratch").iterdir()) == []
    assert state(image.checkout) == before  # a mount may be written to, but nothing of it stays


LISTED = (
    "import importlib.metadata as m\n"
    "for d in m.distributions(): print(d.metadata['Name'] + '==' + d.version)"
)  # fmt: skip


def test_an_image_that_would_import_upstreams_source_is_not_built(image: Image) -> None:
    shutil.rmtree(image.source / "sglang.egg-info")  # by which pip would take what is on PYTHONPATH for installed
    image.env["PYTHONPATH"] = str(image.source)
    done = image.build()
    assert done.returncode == 1
    assert f"Python imports sglang from {image.source / 'sglang'} (on PYTHONPATH), not from" in done.stderr


def test_a_checkout_without_a_wheel_that_fits_is_said(image: Image) -> None:
    (wheel,) = (image.checkout / "dist").iterdir()
    wheel.rename(wheel.with_name("sglang-1.0+overlay.3-cp39-cp39-manylinux_2_34_x86_64.whl"))
    done = image.build()
    assert done.returncode != 0
    assert "No matching distribution found for sglang==1.0" in done.stderr
