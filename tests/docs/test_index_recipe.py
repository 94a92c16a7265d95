"""The page's recipe for an index, with one real index for ours and one for what anyone may publish.

The public one has sglang in versions above and equal to ours, and a plugin of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import pytest
from overlay_tools.engines.loopback import open_directly, without_proxy
from unit.conftest import write_wheel

from docs.pages import tokens

HEADING = "Serve the wheels from an index"
OURS = "1.0+overlay.4"


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language beneath the recipe's heading."""
    found = tokens("ci/README.md")
    start = next(n for n, token in enumerate(found) if token.type == "inline" and token.content == HEADING)
    end = next((n for n, token in enumerate(found) if n > start + 1 and token.type == "heading_open"), len(found))
    return [token.content for token in found[start:end] if token.type == "fence" and token.info == language]


def command(beginning: str) -> str:
    """Return the only command of the recipe that begins so."""
    (line,) = [line for block in blocks("text") for line in block.splitlines() if line.startswith(beginning)]
    return line


def make_wheel(folder: Path, name: str, version: str, whose: str, requires: str = "") -> Path:
    package, stem = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}"
    folder.mkdir(parents=True, exist_ok=True)
    return write_wheel(
        folder / f"{stem}-py3-none-any.whl",
        {
            f"{package}/__init__.py": f"whose = {whose!r}\n".encode(),
            f"{stem}.dist-info/METADATA": metadata.encode(),
            f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        },
    )


@contextlib.contextmanager
def served(folder: Path, words: Sequence[str]) -> Iterator[str]:
    """Run an index server until the block ends; give its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    full = [sys.executable, "-m", "pypiserver", "run", "--host", "127.0.0.1", "--port", str(port), *words, str(folder)]
    process = subprocess.Popen(full, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(URLError, ConnectionError):
                open_directly(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            assert process.poll() is None
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@dataclass(frozen=True)
class Indexes:
    """The address of ours and of the public index, and our wheel."""

    ours: str
    public: str
    wheel: Path

    def adapt(self, text: str) -> str:
        """Return commands or settings of the page with this machine's addresses and the versions that are served."""
        text = text.replace("OUR_INDEX", self.ours).replace("0.5.23+overlay.4", OURS)
        text = text.replace("cp311-cp311-manylinux_2_34_x86_64", "py3-none-any")
        assert "0.5.23" not in text
        return text.replace("HASH", hashlib.sha256(self.wheel.read_bytes()).hexdigest())


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Indexes]:
    root = tmp_path_factory.mktemp("indexes")
    for version in ("1.0.post1", OURS, "2.0"):
        make_wheel(root / "public", "sglang", version, "a stranger's")
    make_wheel(root / "public", "sglang-overlay-plugin", "999", "a stranger's")
    make_wheel(root / "public", "toy", "1", "the public's")
    wheel = make_wheel(root / "ours", "sglang", OURS, "ours", "Requires-Dist: toy\n")
    make_wheel(root / "ours", "sglang-overlay-plugin", "4", "ours")
    serve = command("pypi-server run ").split()
    assert serve[2:4] == ["--port", "8080"]
    with served(root / "public", ["--disable-fallback"]) as public:
        words = [word.replace("PUBLIC_INDEX", f"{public}/simple/") for word in serve[4:-1]]
        with served(root / "ours", words) as ours:
            yield Indexes(ours, public, wheel)


@pytest.fixture
def env(tmp_path: Path, indexes: Indexes) -> Mapping[str, str]:
    """Return the environment variables of a shell whose default index is the public one, in an empty environment."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    pip = tmp_path / "venv" / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pip --python "{tmp_path}/venv" "$@"\n')
    pip.chmod(0o755)
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "PYTHON", "XDG_"))}
    return {
        **without_proxy(mine),
        "PATH": os.pathsep.join([str(tmp_path / "venv" / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "VIRTUAL_ENV": str(tmp_path / "venv"),
        "HOME": str(tmp_path / "home"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"{indexes.public}/simple/",
        "UV_DEFAULT_INDEX": f"{indexes.public}/simple/",
        "UV_CACHE_DIR": str(tmp_path / "cache"),
    }


def shell(line: str, folder: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, check=False)


def whose(python: Path, package: str = "sglang") -> str:
    code = f"import {package}; print({package}.whose)"
    return subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("beginning", ["pip install --index-url ", "uv pip install --index "])
def test_the_command_takes_ours_and_what_it_needs_of_the_public_index(
    tmp_path: Path, indexes: Indexes, env: Mapping[str, str], beginning: str
) -> None:
    done = shell(indexes.adapt(command(beginning)), tmp_path, env)
    assert done.returncode == 0, done.stdout + done.stderr
    python = tmp_path / "venv" / "bin" / "python"
    assert (whose(python), whose(python, "toy")) == ("ours", "the public's")


def test_pip_takes_ours_by_a_constraint_while_it_asks_the_public_index(
    tmp_path: Path, indexes: Indexes, env: Mapping[str, str]
) -> None:
    (constraint,) = (block for block in blocks("text") if block.startswith("sglang @"))
    (tmp_path / "constraints.txt").write_text(indexes.adapt(constraint))
    line = command("pip install --constraint ")
    done = shell(line, tmp_path, env)
    assert done.returncode == 0, done.stdout + done.stderr
    python = tmp_path / "venv" / "bin" / "python"
    assert (whose(python), whose(python, "toy")) == ("ours", "the public's")
    forged = re.sub(r"sha256=\w+", f"sha256={'0' * 64}", (tmp_path / "constraints.txt").read_text())
    (tmp_path / "constraints.txt").write_text(forged)
    done = shell(f"{line} --force-reinstall --no-cache-dir", tmp_path, env)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr


def test_a_project_of_uvs_takes_ours_and_nothing_where_ours_is_gone(
    tmp_path: Path, indexes: Indexes, env: Mapping[str, str]
) -> None:
    (settings,) = blocks("toml")
    project = tmp_path / "project"
    project.mkdir()
    text = indexes.adapt(settings).replace(
        "[project]\n", '[project]\nname = "x"\nversion = "1"\nrequires-python = ">=3.10"\n'
    )
    (project / "pyproject.toml").write_text(text)
    outside = {**{name: value for name, value in env.items() if name != "VIRTUAL_ENV"}, "UV_PYTHON": sys.executable}
    done = shell("uv sync", project, outside)
    assert done.returncode == 0, done.stdout + done.stderr
    python = project / ".venv" / "bin" / "python"
    assert (whose(python), whose(python, "toy")) == ("ours", "the public's")
    (tmp_path / "empty").mkdir()
    with served(tmp_path / "empty", ["--disable-fallback"]) as nothing:
        (project / "pyproject.toml").write_text(text.replace(indexes.ours, nothing))
        (project / "uv.lock").unlink()
        done = shell("uv sync", project, outside)
    assert done.returncode != 0
    assert "sglang was not found in the package registry" in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "pip install --extra-index-url {ours}/simple/ sglang",
        "pip install --extra-index-url {ours}/simple/ 'sglang>=1.0'",
        "pip install --extra-index-url {ours}/simple/ sglang-overlay-plugin",
        "uv pip install --index {ours}/simple/ --index-strategy unsafe-best-match sglang",
    ],
)
def test_what_the_page_warns_of_takes_a_strangers(
    tmp_path: Path, indexes: Indexes, env: Mapping[str, str], line: str
) -> None:
    done = shell(line.format(ours=indexes.ours), tmp_path, env)
    assert done.returncode == 0, done.stdout + done.stderr
    package = "sglang_overlay_plugin" if "plugin" in line else "sglang"
    assert whose(tmp_path / "venv" / "bin" / "python", package) == "a stranger's"


def test_a_version_in_full_is_an_error_where_ours_is_gone(
    tmp_path: Path, indexes: Indexes, env: Mapping[str, str]
) -> None:
    (tmp_path / "public").mkdir()
    make_wheel(tmp_path / "public", "sglang", "2.0", "a stranger's")  # an index that takes no local version, as PyPI
    (tmp_path / "empty").mkdir()
    with (
        served(tmp_path / "public", ["--disable-fallback"]) as public,
        served(tmp_path / "empty", ["--fallback-url", f"{public}/simple/"]) as empty,
    ):
        done = shell(indexes.adapt(command("pip install --index-url ")).replace(indexes.ours, empty), tmp_path, env)
    assert done.returncode != 0
    assert f"No matching distribution found for sglang=={OURS}" in done.stderr
