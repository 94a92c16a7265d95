"""What an engine's environment is made of: which wheels, what beside them, and what not."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from overlay_tools.engines import engine_config, environment
from overlay_tools.engines.environment import engine_environment

from unit.conftest import Miniature


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what an environment is asked to hold, which is not made; tables that tell release 1.1 from 1.0."""
    asked: dict[str, Any] = {}

    @contextmanager
    def open_environment(
        folder: Path, python: str | None, wheels: Sequence[Path], extras: Sequence[str], left_out: Sequence[str] = ()
    ) -> Iterator[Path]:
        asked.update(wheels=[wheel.name for wheel in wheels], extras=set(extras), left_out=set(left_out), python=python)
        yield Path(sys.executable)

    monkeypatch.setattr(environment, "open_environment", open_environment)
    monkeypatch.setattr(environment, "THIS_PYTHON", "3.11")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(environment, "BOUNDS", {">=1.1": ("kernels<0.13",)})
    monkeypatch.setattr(engine_config, "LEFT_OUT", {">=1.1": ("cuda-tile",)})
    return asked


def ask(mini: Miniature, version: str, *, gpu: bool, plugin: bool = False) -> None:
    folder = mini.root / ".nox" / "engines" / "env"
    with engine_environment(mini.project, version, None, folder, gpu=gpu, plugin=plugin) as python:
        assert python == Path(sys.executable)


@pytest.mark.parametrize("gpu", [True, False])
def test_a_release_takes_the_bounds_that_are_set_for_it(mini: Miniature, made: dict[str, Any], gpu: bool) -> None:
    ask(mini, "1.1", gpu=gpu)
    assert "kernels<0.13" in made["extras"]
    ask(mini, "1.0", gpu=gpu)
    assert "kernels<0.13" not in made["extras"]


def test_what_only_a_gpu_needs_is_left_out_on_a_cpu(mini: Miniature, made: dict[str, Any]) -> None:
    ask(mini, "1.1", gpu=False)
    assert made["left_out"] == {"cuda-tile"}
    assert not any("flash-linear-attention" in extra for extra in made["extras"])
    ask(mini, "1.0", gpu=False)
    assert made["left_out"] == set()
    ask(mini, "1.1", gpu=True)
    assert made["left_out"] == set()
    assert any("flash-linear-attention" in extra for extra in made["extras"])


@pytest.mark.parametrize(
    ("gpu", "plugin", "wheels"),
    [
        (False, False, ["sglang-1.0+overlay.3", "sglang_kernel-0.4+cpu.3"]),
        (True, False, ["sglang-1.0+overlay.3"]),
        (False, True, ["sglang-1.0", "sglang_overlay_plugin-3", "sglang_kernel-0.4+cpu.3"]),
        (True, True, ["sglang-1.0", "sglang_overlay_plugin-3"]),
    ],
)
def test_it_holds_the_wheels_of_its_kind(
    mini: Miniature, made: dict[str, Any], gpu: bool, plugin: bool, wheels: list[str]
) -> None:
    mini.write("overlay/sglang_overlay_plugin/__init__.py", "")
    ask(mini, "1.0", gpu=gpu, plugin=plugin)
    assert ["-".join(name.split("-")[:2]) for name in made["wheels"]] == wheels


def test_the_tables_are_of_releases_that_are_locked() -> None:
    assert engine_config.of_release(environment.BOUNDS, "0.5.12.post1") == ("kernels<0.13",)
    assert engine_config.of_release(environment.BOUNDS, "0.5.13.post1") == ()
    assert engine_config.of_release(engine_config.LEFT_OUT, "0.5.22") == ("cuda-tile",)
    assert engine_config.of_release(engine_config.LEFT_OUT, "0.5.23") == ()
