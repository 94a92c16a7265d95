"""`tune` measures the shape that upstream makes a model's layers of experts with, whatever config.json calls it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from overlay_tools.engines import engine_config
from overlay_tools.proving.tune import bench
from overlay_tools.proving.tune.shape import KEYS
from reference.cases import cases
from reference.checkpoints import changed, write_checkpoint

from engine.forked import running
from engine.harness import PLUGIN

WIDTH = 192  # for a CPU, upstream rounds it up to a multiple of 64 on each rank
NAMES = {
    "num_experts": KEYS,
    "top_k": ("num_experts_per_tok",),
    "hidden_size": ("hidden_size",),
    "intermediate_size": ("moe_intermediate_size",),
}


def experts(config: Mapping[str, Any]) -> int:
    """Give how many experts a configuration has, 0 for none."""
    return int(next((config[key] for key in KEYS if config.get(key)), 0))


# What `tune` runs on is the drop-in wheel: where the plugin is tested instead, upstream's own models are left.
CASES = {
    name: case
    for name, case in cases().items()
    if case.vector is None and not case.pictures and not (PLUGIN and case.ours)
}
SPARSE = [name for name, case in CASES.items() if experts(case.config)]
DENSE = [name for name, case in CASES.items() if not experts(case.config)]


def read(config: Mapping[str, Any], folder: Path, *flags: str) -> dict[str, Any]:
    """Let the script of `tune` read a checkpoint, which has no weights."""
    write_checkpoint(folder, config, {})
    arguments = [*engine_config.flags(engine_config.ARGS), *flags]
    job, log = folder / "job.json", folder / "log"
    job.write_text(json.dumps({"checkpoint": str(folder), "flags": arguments, "keys": KEYS}))
    with running([str(bench.SCRIPT), str(job)], {}, log) as process:  # which is asked for no more
        status, said = process.wait(120), log.read_text(errors="replace")
    assert status == 0, said[-4000:]
    [line] = [line for line in said.splitlines() if line.startswith('{"experts"')]
    facts: dict[str, Any] = json.loads(line)
    return facts


@pytest.mark.parametrize("name", SPARSE)
def test_the_layer_of_experts_is_the_configuration_s(name: str, tmp_path: Path) -> None:
    config = changed(CASES[name].config, {"moe_intermediate_size": WIDTH})
    facts = read(config, tmp_path, "--tp-size", "2")
    assert not facts["problem"]
    layer = facts["layer"]
    for key, names in NAMES.items():
        assert layer[key] == next(config[name] for name in names if name in config)
    # Without a GPU, upstream computes shared experts apart.
    assert (layer["num_fused_shared_experts"], layer["activation"], layer["is_gated"]) == (0, "silu", True)


@pytest.mark.parametrize("name", DENSE)
def test_a_model_without_experts_is_not_built(name: str, tmp_path: Path) -> None:
    facts = read(CASES[name].config, tmp_path)
    assert (facts["experts"], facts["layer"], facts["problem"]) == (None, None, "")


@pytest.mark.parametrize("name", DENSE)
def test_experts_that_the_model_does_not_have_are_not_believed(name: str, tmp_path: Path) -> None:
    """Upstream's own models are built to their end then; those of the overlay say that they do not read the key."""
    facts = read(changed(CASES[name].config, {"num_experts": 8}), tmp_path)
    assert (facts["experts"], facts["layer"]) == (8, None)
    assert ("num_experts is not a key of this model" in facts["problem"]) is CASES[name].ours


class OnTheCpu:
    """Torch, where what is asked of a GPU is done without one."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        made = getattr(torch, name)
        if name == "Generator":
            return lambda device: made()
        return (lambda *given, device, **more: made(*given, **more)) if name in ("arange", "randn") else made


@pytest.mark.parametrize(
    ("experts", "of", "topk", "shared"), [(64, 64, 8, 0), (16, 64, 8, 0), (65, 65, 9, 1), (18, 66, 6, 2)]
)
def test_each_token_goes_to_all_shared_experts(
    experts: int, of: int, topk: int, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("tune_script", bench.SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "torch", OnTheCpu())
    shape = {"experts": experts, "all_experts": of, "topk": topk, "shared": shared, "hidden": 8}
    kernel = SimpleNamespace(shape=shape, dtype=torch.float32, topk_output=lambda *parts: parts)
    tokens, calls = 200, 3
    local = experts - shared
    inputs = script.Inputs(kernel, tokens, calls)
    assert len(inputs.routes) == calls
    for weights, ids, _ in inputs.routes:
        assert weights.shape == ids.shape == (tokens, topk)
        assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)
        assert bool((weights > 0).all())
        routed, to_all = ids[:, : topk - shared], ids[:, topk - shared :]
        assert {*routed.unique().tolist()} == {*range(local), *([-1] if experts < of else [])}
        assert to_all.tolist() == [[*range(local, experts)]] * tokens
