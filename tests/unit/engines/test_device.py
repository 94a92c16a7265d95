"""What decides whether an engine runs on a GPU: the driver, and the variables that users and upstream know."""

from __future__ import annotations

from pathlib import Path

import pytest
from overlay_tools.engines.device import choose_device

TWO = """\
GPU 0: NVIDIA H200 (UUID: GPU-0f0f0f0f-1111)
GPU 1: NVIDIA H200 (UUID: GPU-1f1f1f1f-2222)
  MIG 1g.18gb     Device  0: (UUID: MIG-3333)"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make nvidia-smi a program that lists two GPUs, and set none of the variables."""
    for name in ("SGLANG_USE_CPU_ENGINE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return says(tmp_path / "nvidia-smi", TWO)


def says(path: Path, text: str, status: int = 0) -> Path:
    path.write_text(f"#!/bin/sh\n[ \"$*\" = -L ] || exit 2\ncat <<'END'\n{text}\nEND\nexit {status}\n")
    path.chmod(0o755)
    return path


def test_a_gpu_that_the_driver_lists_is_used(driver: Path) -> None:
    device = choose_device()
    assert (device.gpu, device.why) == (True, "nvidia-smi lists 2")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", 0),
        ("No devices were found", 6),
        ("NVIDIA-SMI has failed because it could not find a GPU of its driver.", 9),
        ("Unable to determine the device handle for GPU 0000:1B:00.0: Unknown Error", 0),
    ],
)
def test_a_driver_without_gpus_means_the_cpu(driver: Path, text: str, status: int) -> None:
    says(driver, text, status)
    assert not choose_device().gpu


def test_no_driver_means_the_cpu(driver: Path) -> None:
    driver.unlink()
    assert choose_device().why == "this machine has no GPU that nvidia-smi lists"


def test_a_driver_that_cannot_be_run_means_the_cpu(driver: Path) -> None:
    driver.write_bytes(b"\x7fELF of another machine")
    assert not choose_device().gpu


@pytest.mark.parametrize("value", ["", " ", "-1", "-1,0", "NoDevFiles", "none", ",0", "2", "7,0", "GPU-2f", "MIG-44"])
def test_a_variable_that_hides_every_gpu_means_the_cpu(
    driver: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    device = choose_device()
    assert not device.gpu
    assert f"CUDA_VISIBLE_DEVICES is {value!r}" in device.why


@pytest.mark.parametrize("value", ["0", "1", " 1", "1,0", "0,-1", "0,9", "GPU-1f1f", "GPU-0f0f0f0f-1111", "MIG-3333"])
def test_a_variable_that_shows_one_means_a_gpu(driver: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert choose_device().gpu


@pytest.mark.parametrize(("value", "gpu"), [("1", False), ("0", True), ("", True), ("true", True)])
def test_the_engine_for_cpus_is_asked_for_as_upstream_reads_it(
    driver: Path, monkeypatch: pytest.MonkeyPatch, value: str, gpu: bool
) -> None:
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", value)
    assert choose_device().gpu is gpu
