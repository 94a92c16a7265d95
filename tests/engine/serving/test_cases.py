"""A release that is built without a model has no case of it, and its tests are not there."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from reference import cases

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
