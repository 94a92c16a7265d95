"""The commands that run the engine, whole, with a driver's tool and a package index that are stand-ins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from overlay_tools.upstream.lockfile import THIS_PYTHON

from unit.conftest import Miniature, upstream_files, write_wheel

# What is run in an environment writes down how, and ends with the status that it is told to.
RECORDER = """\
import importlib.metadata, json, os, sys
with open(os.environ["RECORD"], "w") as file:
    json.dump({
        "arguments": sys.argv[1:],
        "environment": dict(os.environ),
        "installed": {found.name: found.version for found in importlib.metadata.distributions()},
    }, file)
sys.exit(int(os.environ["STATUS"]))
"""
DRIVERS = {
    "a GPU": 'test "$*" = -L && echo "GPU 0: NVIDIA H200 (UUID: GPU-0f0f)"',
    "no GPU": "echo No devices were found; exit 6",
    "no driver": "echo NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.; exit 9",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A machine with a checkout and an index of its own."""

    mini: Miniature
    index: Path
    folder: Path

    def run(
        self, driver: str, *words: str, status: int = 0, variables: Mapping[str, str] = MappingProxyType({})
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of the tool where nvidia-smi is one of DRIVERS; what that runs ends with `status`.

        Parameters: `variables`, of the environment.
        """
        smi = self.folder / "bin" / "nvidia-smi"
        smi.parent.mkdir(exist_ok=True)
        smi.write_text(f"#!/bin/sh\n{DRIVERS[driver]}\n")
        smi.chmod(0o755)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("SGL", "CUDA", "PYTHONPATH"))
        }
        environment |= {
            "PATH": os.pathsep.join([str(smi.parent), os.environ["PATH"]]),
            "SGLANG_OVERLAY_CACHE": str(self.mini.cache),
            "UV_CACHE_DIR": str(self.folder / "uv"),
            "UV_FIND_LINKS": str(self.index),
            "UV_NO_CONFIG": "1",
            "UV_OFFLINE": "1",
            "RECORD": str(self.folder / "record"),
            "STATUS": str(status),
            **variables,
        }
        command = [sys.executable, "-m", "overlay_tools", *words]
        return subprocess.run(command, cwd=self.mini.root, env=environment, capture_output=True, text=True, check=False)

    def record(self) -> dict[str, Any]:
        """Read how the last thing was run in an environment."""
        return dict(json.loads((self.folder / "record").read_text()))


def publish(folder: Path, name: str, version: str, files: dict[str, str] | None = None, requires: str = "") -> Path:
    """Write a wheel of a distribution for every Python."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}"
    content = {**(files or {}), f"{info}/METADATA": metadata}
    content[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    encoded = {path: text.encode() for path, text in content.items()}
    return write_wheel(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", encoded)


@pytest.fixture
def machine(mini: Miniature, tmp_path: Path) -> Machine:
    index = tmp_path / "index"
    index.mkdir()
    publish(index, "pytest", "9.0", {"pytest/__init__.py": "", "pytest/__main__.py": RECORDER})
    versions = {
        "accelerate": "1.0",
        "pytest-xdist": "3.6",
        "filelock": "3",
        "platformdirs": "4",
        "tomlkit": "0.14",
        "pip": "25.0",
        "psutil": "7.0",
        "rich": "14.0",
        "uv": "0.9",
        "torch": "2.0",
    }
    for name, version in {**versions, "flash-linear-attention": "0.4"}.items():
        publish(index, name, version)
    publish(index, "sglang-kernel", "0.4", {"sgl_kernel/__init__.py": ""})
    for version in ("1.0", "1.1"):
        files = upstream_files(version)
        info = f"sglang-{version}.dist-info"
        files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        requires = b"\nRequires-Dist: sglang-kernel==0.4\n\n"
        files[f"{info}/METADATA"] = files[f"{info}/METADATA"].replace(b"\n\n", requires, 1)
        mini.lock_wheel(version, write_wheel(tmp_path / f"sglang-{version}-py3-none-any.whl", files))
    return Machine(mini=mini, index=index, folder=tmp_path)


def test_on_a_gpu_the_engine_is_tested_with_upstream_s_kernels(machine: Machine) -> None:
    done = machine.run("a GPU", "test-engine", "--gpu", "1.0", status=7)
    assert done.returncode == 7, done.stderr
    ran = machine.record()
    assert ran["arguments"] == ["-W", "default", "tests/gpu"]
    assert ran["installed"]["sglang"] == "1.0+overlay.3"
    assert ran["installed"]["sglang-kernel"] == "0.4"
    assert "flash-linear-attention" in ran["installed"]
    assert "SGLANG_USE_CPU_ENGINE" not in ran["environment"]
    machine.mini.write("tests/gpu/test_graphs.py", "")
    again = machine.run("a GPU", "test-engine", "--gpu", "1.0", "--", "tests/gpu/test_graphs.py", "-x")
    assert again.returncode == 0, again.stderr
    assert machine.record()["arguments"] == ["-W", "default", "tests/gpu/test_graphs.py", "-x"]


def test_tests_that_are_killed_are_one_error(machine: Machine) -> None:
    done = machine.run("no GPU", "test-engine", "1.0", status=-signal.SIGKILL)
    assert done.returncode == 1
    assert "error: pytest was killed before it could say what failed.\n  An engine that cannot start" in done.stderr


def test_without_a_gpu_the_engine_is_tested_with_the_overlay_s_kernels(machine: Machine) -> None:
    done = machine.run("no GPU", "test-engine", "1.0", "--", "-x", status=1)
    assert done.returncode == 1, done.stderr
    ran = machine.record()
    assert ran["arguments"][:2] == ["-W", "default"]
    assert ran["arguments"][-1] == "-x"
    assert "tests/engine/decisions" in ran["arguments"]
    assert ran["installed"]["sglang-kernel"] == "0.4+cpu.3"
    assert "flash-linear-attention" not in ran["installed"]
    assert ran["environment"]["SGLANG_USE_CPU_ENGINE"] == "1"


def test_all_tests_without_a_gpu_run_in_several_processes(machine: Machine) -> None:
    assert machine.run("no GPU", "test-engine", "1.0").returncode == 0
    assert machine.record()["arguments"][-3:] == ["--numprocesses=logical", "--maxprocesses=2", "--dist=loadfile"]


def test_beside_a_gpu_the_tests_for_a_cpu_have_an_environment_of_their_own(machine: Machine) -> None:
    assert machine.run("a GPU", "test-engine", "--gpu", "1.0").returncode == 0
    done = machine.run("a GPU", "test-engine", "1.0")
    assert done.returncode == 0, done.stderr
    ran = machine.record()
    assert ran["installed"]["sglang-kernel"] == "0.4+cpu.3"
    assert "flash-linear-attention" not in ran["installed"]
    assert (ran["environment"]["SGLANG_USE_CPU_ENGINE"], ran["environment"]["CUDA_VISIBLE_DEVICES"]) == ("1", "")
    engines = sorted(path.name for path in (machine.mini.root / ".nox/engines").iterdir() if path.is_dir())
    assert engines == [f"1.0-py{THIS_PYTHON}", f"1.0-py{THIS_PYTHON}-gpu"]
    made = {path: path.stat().st_mtime_ns for path in (machine.mini.root / ".nox/engines").glob("*/pyvenv.cfg")}
    assert machine.run("a GPU", "test-engine", "--gpu", "1.0").returncode == 0
    assert machine.run("a GPU", "test-engine", "1.0").returncode == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_benchmarks_run_on_a_gpu_in_the_environment_of_a_release(machine: Machine) -> None:
    machine.mini.write("tests/gpu/__init__.py", "")
    machine.mini.write("tests/gpu/bench.py", RECORDER)
    done = machine.run("a GPU", "bench-gpu", "layers", "drafts", "--release", "1.1", "--", "--tp-size", "2")
    assert done.returncode == 0, done.stderr
    ran = machine.record()
    assert ran["arguments"] == ["layers", "drafts", "--", "--tp-size", "2"]
    assert ran["installed"]["sglang"] == "1.1+overlay.3"
    assert ran["installed"]["sglang-kernel"] == "0.4"


@pytest.mark.parametrize("words", [("test-engine", "--gpu", "1.0"), ("bench-gpu",), ("tune", "model")])
@pytest.mark.parametrize(
    ("driver", "variables", "why"),
    [
        ("no GPU", {}, "this machine has no GPU that nvidia-smi lists"),
        ("no driver", {}, "this machine has no GPU that nvidia-smi lists"),
        ("a GPU", {"SGLANG_USE_CPU_ENGINE": "1"}, "SGLANG_USE_CPU_ENGINE is 1"),
        ("a GPU", {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES is '', which hides every GPU"),
    ],
)
def test_where_no_gpu_is_to_be_used_nothing_is_built(
    machine: Machine, words: tuple[str, ...], driver: str, variables: dict[str, str], why: str
) -> None:
    done = machine.run(driver, *words, variables=variables)
    assert done.returncode == 1
    assert f"There is no CUDA GPU to use: {why}." in done.stderr
    assert "does without one" in done.stderr
    assert not (machine.mini.root / "dist").exists()
    assert not (machine.mini.root / ".nox").exists()
