"""The engine's arguments as flags, and what is different for some releases."""

from __future__ import annotations

import pytest
from overlay_tools.engines.engine_config import drafts, of_release
from overlay_tools.engines.engine_config import flags as flags_of


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


@pytest.mark.parametrize(
    ("release", "kept", "second"),
    [
        ("0.5.9", None, False),
        ("0.5.10.post1", "mamba_scheduler_strategy", True),
        ("0.5.13.post1", "mamba_scheduler_strategy", True),
        ("0.5.14", "mamba_radix_cache_strategy", True),
    ],
)
def test_drafts_are_asked_for_in_a_release_s_words(release: str, kept: str | None, second: bool) -> None:
    arguments, environment = drafts(release, 3)
    assert arguments["speculative_num_draft_tokens"] == 4
    assert [name for name in arguments if name.startswith("mamba")] == ([kept] if kept else [])
    assert bool(environment) == second
