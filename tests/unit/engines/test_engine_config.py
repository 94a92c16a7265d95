"""The engine's arguments as flags, and what is different for some releases."""

from __future__ import annotations

import pytest
from overlay_tools.engines.engine_config import flags as flags_of
from overlay_tools.engines.engine_config import of_release


def test_arguments_become_flags() -> None:
    arguments = {
        "device": "cpu",
        "sleep_on_idle": True,
        "disable_cuda_graph": False,
        "revision": None,
        "random_seed": 0,
    }
    assert flags_of(arguments) == ["--device", "cpu", "--sleep-on-idle", "--random-seed", "0"]


@pytest.mark.parametrize(
    ("release", "found"),
    [("0.5.8", ()), ("0.5.9", ("a",)), ("0.5.12.post1", ("a",)), ("0.5.13rc1", ("b",)), ("0.5.13", ("b",))],
)
def test_a_release_takes_what_its_range_has(release: str, found: tuple[str, ...]) -> None:
    assert of_release({">=0.5.9,<0.5.13rc1": ("a",), ">=0.5.13rc1": ("b",)}, release) == found
