"""The engine's arguments as flags, and what is different for some releases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from overlay_tools.engines.engine_config import drafts, of_release, usual
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


@pytest.mark.parametrize(
    ("mebibytes", "own", "threads"),
    [((63,), None, 1), ((32, 32), None, 3), ((), None, 3), ((1,), "2", 2), ((500,), "2", 2)],
    ids=["tiny", "large", "not there yet", "tiny, as the user says", "large, as the user says"],
)
def test_large_weights_are_computed_with_on_all_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mebibytes: tuple[int, ...], own: str | None, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 3})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if own:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    for number, size in enumerate(mebibytes):
        with (tmp_path / f"model-{number}.safetensors").open("wb") as file:
            file.truncate(size << 20)
    assert usual(tmp_path, gpu=False)[1]["OMP_NUM_THREADS"] == str(threads)
    assert "OMP_NUM_THREADS" not in usual(tmp_path, gpu=True)[1]
