"""A release that is built without a model has no case of it, and its tests are not there."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from reference import cases

from engine import conftest
from engine.harness import OURS

NAME = next(iter(OURS))
EVERY = {*cases.cases()}


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Let [tool.sglang-overlay.files] keep the row of a model from this release."""
    row = f"sglang/srt/overlay_models/{NAME.replace('-', '_')}.py"
    monkeypatch.setattr(cases, "load_project", lambda root: SimpleNamespace(takes=lambda release, file: file != row))
    for function in (cases.left_out, cases.cases):
        function.cache_clear()
    yield row
    for function in (cases.left_out, cases.cases):
        function.cache_clear()


def test_a_model_that_a_release_is_built_without_has_no_case(without: str) -> None:
    assert cases.cases().keys() == EVERY - {NAME}
    [(folder, why)] = cases.left_out().items()
    assert folder == NAME.replace("-", "_")
    assert without in why


def test_the_report_names_it_once(without: str) -> None:
    items = [SimpleNamespace(user_properties=[], iter_markers=lambda name: []) for _ in range(2)]
    hook = SimpleNamespace(pytest_deselected=lambda items: None)
    conftest.pytest_collection_modifyitems(SimpleNamespace(hook=hook), items)  # type: ignore[arg-type]
    [(name, value)] = items[0].user_properties
    assert (name, value.startswith(f"{NAME.replace('-', '_')}: ")) == ("left out", True)
    assert items[1].user_properties == []
