"""pip and uv, with the settings of a user who has many: an index is reached as the user says, and no more counts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from overlay_tools.engines.venv import open_environment
from overlay_tools.upstream.index import query_release
from overlay_tools.upstream.installer_settings import foreign_variables
from overlay_tools.upstream.installers import pip_download, pip_environment, uv_environment

from unit.conftest import REPOSITORY, write_wheel
from unit.upstream.conftest import Index

OTHERWISE = {
    "PIP_USER": "1",
    "PIP_REQUIRE_HASHES": "1",
    "PIP_TARGET": "elsewhere",
    "PIP_PREFIX": "elsewhere",
    "PIP_ROOT": "elsewhere",
    "PIP_NO_DEPS": "1",
    "PIP_DRY_RUN": "1",
    "PIP_ONLY_BINARY": ":none:",
    "PIP_NO_BINARY": ":all:",
    "PIP_CONSTRAINT": "absent.txt",
    "PIP_REQUIREMENT": "absent.txt",
    "PIP_PYTHON": "/absent/python",
    "UV_SYSTEM_PYTHON": "1",
    "UV_PROJECT_ENVIRONMENT": "elsewhere",
    "UV_CONSTRAINT": "absent.txt",
    "UV_OVERRIDE": "absent.txt",
    "UV_REQUIRE_HASHES": "1",
    "UV_TARGET": "elsewhere",
    "UV_NO_BINARY": "1",
    "UV_EXCLUDE_NEWER": "2001-01-01",
    "UV_RESOLUTION": "lowest",
    "UV_PYTHON": "3.99",
    "UV_BREAK_SYSTEM_PACKAGES": "1",
    "UV_VENV_SEED": "1",
    "PYTHONPATH": "/absent",
    "VIRTUAL_ENV": "/absent",
    "CONDA_PREFIX": "/absent",
    "PYTHONOPTIMIZE": "2",
    "PYTHONDONTWRITEBYTECODE": "1",
}
PIP_CONF = """\
[global]
index-url = {url}
constraint = absent.txt
target = elsewhere
[install]
user = true
require-hashes = true
prefix = elsewhere
[download]
no-binary = :all:
"""
UV_TOML = """\
offline = false
exclude-newer = "2001-01-01T00:00:00Z"
constraint-dependencies = ["sglang<1"]

[[index]]
url = "{url}"
default = true

[pip]
system = true
target = "elsewhere"
require-hashes = true
no-binary = ["sglang"]
resolution = "lowest"
"""


def locks_and_downloads(index: Index, tmp_path: Path) -> None:
    (tmp_path / "got").mkdir(parents=True)
    release = query_release("2.0")
    wheel = release.select("3.11", "x86_64")
    pip_download("sglang==2.0", wheel, "", tmp_path / "got")
    assert (tmp_path / "got" / wheel.name).exists()
    assert not list(Path.cwd().rglob("elsewhere"))


def test_variables_that_would_change_what_is_installed_do_not_count(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in OTHERWISE.items():
        monkeypatch.setenv(name, value)
    locks_and_downloads(index, tmp_path)
    info = "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n"
    files = {"thing.py": "", "thing-1.0.dist-info/METADATA": info, "thing-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\n"}
    thing = write_wheel(tmp_path / "thing-1.0-py3-none-any.whl", {name: text.encode() for name, text in files.items()})
    with open_environment(tmp_path / "environment", None, [thing], []) as python:
        subprocess.run([python, "-I", "-c", "import thing"], check=True)
    assert not list(tmp_path.rglob("elsewhere"))


def test_files_that_would_change_what_is_installed_do_not_count_and_their_index_does(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_NO_CONFIG"):
        monkeypatch.delenv(name)
    (tmp_path / "pip.conf").write_text(PIP_CONF.format(url=index.url))
    (tmp_path / "uv").mkdir()
    (tmp_path / "uv" / "uv.toml").write_text(UV_TOML.format(url=index.url))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    locks_and_downloads(index, tmp_path / "here")


def test_where_an_index_is_named_no_file_names_another_place(
    other_index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.conf").write_text("[global]\nextra-index-url = http://127.0.0.1:1/\nno-index = true\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_FIND_LINKS", "/absent")
    other_index.publish("3.0")
    assert query_release("3.0", other_index.url).version == "3.0"
    env = pip_environment("install", other_index.url)
    assert [env.get(name) for name in ("PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_FIND_LINKS")] == [None] * 3


@pytest.mark.usefixtures("plain_installers")
def test_how_an_index_is_reached_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {
        "PIP_CERT": "/a.pem",
        "PIP_PROXY": "http://proxy",
        "PIP_TRUSTED_HOST": "x",
        "UV_INDEX_OURS_PASSWORD": "x",
        "UV_NATIVE_TLS": "1",
        "UV_TORCH_BACKEND": "cpu",
        "UV_OFFLINE": "1",
        "UV_LINK_MODE": "copy",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_INDEX": "1",
    }
    assert foreign_variables([*kept, *OTHERWISE]) == [name for name in OTHERWISE if name.startswith(("PIP_", "UV_"))]
    for name, value in kept.items():
        monkeypatch.setenv(name, value)
    env = {**os.environ, **pip_environment("install"), **uv_environment()}
    assert {name: env[name] for name in kept} == kept


def test_paths_in_a_file_of_uvs_mean_what_they_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_NO_CONFIG", raising=False)
    monkeypatch.delenv("UV_CONFIG_FILE", raising=False)
    (tmp_path / "uv.toml").write_text(
        'find-links = ["wheels", "https://x"]\ncache-dir = "kept"\n[pip]\nsystem = true\n'
    )
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    path = uv_environment()["UV_CONFIG_FILE"]
    assert path is not None
    text = Path(path).read_text()
    assert f'find-links = ["{tmp_path}/wheels", "https://x"' in text
    assert f'cache-dir = "{tmp_path}/kept"' in text
    assert "system" not in text


def test_a_session_of_nox_installs_nowhere_else() -> None:
    """A user's variables are gone before nox makes an environment."""
    code = "import os, noxfile; print(*sorted(name for name in os.environ if name.startswith(('PIP_', 'UV_'))))"
    environment: Mapping[str, str] = {**os.environ, **OTHERWISE, "UV_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert not {*done.stdout.split()} & {*OTHERWISE}
    assert "UV_OFFLINE" in done.stdout.split()
