"""Which tests a stage runs: each module of tests of the engine belongs to one."""

from __future__ import annotations

from pathlib import Path

import pytest
from overlay_tools.proving.stages import ENGINE_TESTS, GPU_TESTS, PLUGIN_STAGE, PLUGIN_TESTS, STAGES

from unit.conftest import REPOSITORY


def modules(folder: str) -> list[Path]:
    """List the modules of tests that pytest finds in a folder of the checkout."""
    return [path.relative_to(REPOSITORY) for path in (REPOSITORY / folder).rglob("test_*.py")]


@pytest.mark.parametrize("module", modules("tests/engine"), ids=lambda path: path.name)
def test_each_module_of_the_engine_s_tests_belongs_to_one_stage(module: Path) -> None:
    stages = [stage for stage, folders in STAGES.items() if any(module.is_relative_to(folder) for folder in folders)]
    assert len(stages) == 1, f"{module} is in the folders of {stages}; stages.py has the folders of each stage"


@pytest.mark.parametrize("folder", dict.fromkeys([*ENGINE_TESTS, *PLUGIN_TESTS, *GPU_TESTS, *STAGES["static"]]))
def test_each_folder_of_a_stage_holds_tests(folder: str) -> None:
    assert modules(folder) != []


@pytest.mark.parametrize("path", PLUGIN_STAGE["plugin"])
def test_the_plugin_s_stage_is_of_the_plugin_s_tests(path: str) -> None:
    assert (REPOSITORY / path).exists()
    assert any(Path(path).is_relative_to(folder) for folder in PLUGIN_TESTS)


def test_the_engine_comes_last() -> None:
    assert list(STAGES)[-1] == "engine"
    assert ENGINE_TESTS[-len(STAGES["engine"]) :] == STAGES["engine"]


def test_the_plugin_is_not_asked_for_a_drop_in_wheel() -> None:
    left_out = {module.name for folder in ENGINE_TESTS for module in modules(folder)}
    left_out -= {module.name for folder in PLUGIN_TESTS for module in modules(folder)}
    assert {"test_install.py", "test_wheel.py"} <= left_out
    assert not any("test_qwen3" in name for name in left_out)
