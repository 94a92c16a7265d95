"""Upstream decides for a derived model what it decides for the model that it derives from.

A derived model shows itself to upstream as its base, so that upstream's lists of architectures, which choose attention
backends, caches, schedules, quantisation, MoE kernels and draft models, hold for it. Here upstream resolves many sets
of options for checkpoints of both with the same dimensions, on a CPU and on simulated GPUs and NPUs (see `decide.py`,
also for what cannot be simulated), and all that it decides is compared.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from overlay_tools.engines import engine_config
from overlay_tools.subprocesses import start
from reference.cases import Decisions, cases
from reference.checkpoints import write_config, write_tokenizer

from engine.decisions.decide import GPUS, MAIN
from engine.harness import PLUGIN

DEVICES = ("cpu", *GPUS)

DECIDED: dict[str, Decisions] = {name: case.decisions for name, case in cases().items() if case.decisions is not None}
BASE = "base"
VARIANTS = [(name, variant) for name, decisions in DECIDED.items() for variant in decisions.derived]
FIRST = [(name, next(iter(decisions.derived))) for name, decisions in DECIDED.items()]

NEXTN = {"speculative_algorithm": "NEXTN"}
EAGLE = {"speculative_algorithm": "EAGLE", "speculative_num_steps": 3}
CHAIN = EAGLE | {"speculative_eagle_topk": 1, "speculative_num_draft_tokens": 4}
TREE = EAGLE | {"speculative_eagle_topk": 4, "speculative_num_draft_tokens": 8}
EXTRA_BUFFER = {"mamba_radix_cache_strategy": "extra_buffer"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128], "fmt": "e4m3"}
OPTION_SETS: list[dict[str, Any]] = [
    {},
    NEXTN,
    *({"attention_backend": name} for name in ("triton", "flashinfer", "fa3", "torch_native", "trtllm_mha")),
    {"prefill_attention_backend": "fa3", "decode_attention_backend": "flashinfer"},
    {"linear_attn_backend": "triton"},
    {"disable_radix_cache": True},
    {"disable_radix_cache": True, "attention_backend": "trtllm_mha", "page_size": 64},
    {"mamba_radix_cache_strategy": "auto"},
    {"mamba_radix_cache_strategy": "no_buffer"},
    EXTRA_BUFFER,
    EXTRA_BUFFER | {"page_size": 64},
    EXTRA_BUFFER | {"page_size": 128},
    EXTRA_BUFFER | {"disable_radix_cache": True},
    EXTRA_BUFFER | NEXTN,
    EXTRA_BUFFER | CHAIN | {"mamba_track_interval": 2},
    {"page_size": 1},
    {"page_size": 16},
    {"page_size": 64},
    {"max_mamba_cache_size": 64, "mamba_full_memory_ratio": 0.5},
    CHAIN,
    TREE,
    TREE | {"page_size": 64},
    CHAIN | {"disable_radix_cache": True, "attention_backend": "fa3"},
    NEXTN | {"disable_overlap_schedule": True},
    NEXTN | {"enable_dp_attention": True, "tp_size": 4, "dp_size": 4},
    NEXTN | {"speculative_draft_model_quantization": "unquant", "quantization": "fp8"},
    {"speculative_algorithm": "NGRAM", "speculative_num_draft_tokens": 8},
    *({"quantization": name} for name in ("fp8", "modelopt_fp4", "w8a8_int8", "awq")),
    {"quantization": "fp8", "tp_size": 2, "ep_size": 2, "moe_runner_backend": "triton"},
    {"json_model_override_args": json.dumps({"quantization_config": FP8})},
    {"json_model_override_args": json.dumps({"quantization_config": FP8}), "tp_size": 4, **NEXTN},
    {"dtype": "float16"},
    {"dtype": "float32"},
    {"tp_size": 2},
    {"tp_size": 3},
    {"tp_size": 4, "ep_size": 4},
    {"tp_size": 8, "ep_size": 8, "moe_a2a_backend": "deepep"},
    {"tp_size": 8, "dp_size": 2, "enable_dp_attention": True},
    {"tp_size": 8, "enable_flashinfer_allreduce_fusion": True},
    {"tp_size": 2, "dp_size": 2},
    {"pp_size": 2},
    {"pp_size": 2, "disable_overlap_schedule": True},
    {"chunked_prefill_size": 2048},
    {"chunked_prefill_size": -1},
    {"kv_cache_dtype": "fp8_e4m3"},
    {"kv_cache_dtype": "fp8_e5m2", "attention_backend": "triton"},
    {"moe_runner_backend": "triton"},
    {"moe_runner_backend": "flashinfer_trtllm", "quantization": "fp8"},
    {"moe_runner_backend": "flashinfer_cutlass", "quantization": "modelopt_fp4", "tp_size": 2, "ep_size": 2},
    {"disable_cuda_graph": True},
    {"cuda_graph_bs": [1, 2, 4]},
    {"enable_torch_compile": True},
    {"disable_overlap_schedule": True},
    {"enable_mixed_chunk": True},
    {"enable_deterministic_inference": True},
    {"disaggregation_mode": "prefill"},
    {"disaggregation_mode": "decode"},
    {"enable_hierarchical_cache": True},
    {"is_embedding": True},
    {"context_length": 8192, "max_running_requests": 16},
]

# Of a device, of a configuration (a case and what it is), of an option set.
Decided = dict[str, dict[tuple[str, str], list[dict[str, str] | None]]]


@pytest.fixture(scope="module")
def decided() -> Decided:
    """Let upstream decide all cases."""
    with TemporaryDirectory() as name:  # what pytest keeps of its last runs would be 100 MB each
        return decide(Path(name))


def decide(folder: Path) -> Decided:
    paths: dict[tuple[str, str], Path] = {}
    made: dict[str, Path] = {}  # models of one base share it
    for name, decisions in DECIDED.items():
        for what, config in {BASE: decisions.base, **decisions.derived}.items():
            path = made.setdefault(json.dumps(config), folder / str(len(made)))
            write_config(path, config)
            write_tokenizer(path)
            paths[name, what] = path
    warm_up = write_config(folder / "warm-up", next(iter(DECIDED.values())).base)
    write_tokenizer(warm_up)
    asked = {
        "warm_up": str(warm_up),
        "checkpoints": [str(path) for path in made.values()],
        "option_sets": OPTION_SETS,
        "plugin": PLUGIN.name if PLUGIN else "",
    }
    (folder / "cases.json").write_text(json.dumps(asked), encoding="utf-8")

    shared = {name: value for name, value in os.environ.items() if name not in engine_config.ENV}
    shared |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        processes = [
            start(
                [sys.executable, Path(__file__).with_name("decide.py"), folder / "cases.json", folder, *devices],
                env=shared | environment,
                stdout=log,
                stderr=log,
            )
            for devices, environment in ((["cpu"], engine_config.ENV), (GPUS, {}))
        ]
        statuses = [process.wait() for process in processes]
    assert statuses == [0, 0], (folder / "log").read_text(errors="replace")[-4000:]
    read = {device: json.loads((folder / f"{device}.json").read_text(encoding="utf-8")) for device in DEVICES}
    return {device: {key: read[device][str(path)] for key, path in paths.items()} for device in DEVICES}


def pairs(
    decided: Decided, device: str, variant: tuple[str, str]
) -> Iterator[tuple[str, dict[str, str], dict[str, str]]]:
    """Give each option set that the release knows with what was decided for the base and for the derived model."""
    theirs, ours = decided[device][variant[0], BASE], decided[device][variant]
    for options, base, derived in zip(OPTION_SETS, theirs, ours, strict=True):
        if base is not None and derived is not None:
            yield str(options), base, derived


def differing(base: Mapping[str, str], derived: Mapping[str, str]) -> list[str]:
    """List the decisions that differ; no more than the refusal if only one is refused."""
    names = {"refusal"} if ("refusal" in base) != ("refusal" in derived) else base.keys() | derived.keys()
    return sorted(name for name in names if base.get(name) != derived.get(name))


def expected(name: str, base: Mapping[str, str], variant: tuple[str, str]) -> str | None:
    """Give the entry of what may differ by which `name` does, None if there is none."""
    decisions = DECIDED[variant[0]]
    parts = name.split(".")
    for i, member in enumerate(parts):
        is_config = base.get(".".join([*parts[:i], "__class__"])) == decisions.configuration
        if is_config and member in decisions.differences[variant[1]]:
            return member
    return None


@pytest.mark.parametrize("variant", VARIANTS, ids=", ".join)
@pytest.mark.parametrize("device", DEVICES)
def test_decisions_are_those_for_the_base(decided: Decided, device: str, variant: tuple[str, str]) -> None:
    wrong = {
        name: f"{base.get(name)} for the base, {derived.get(name)} for the derived model with {options}"
        for options, base, derived in pairs(decided, device, variant)
        for name in differing(base, derived)
        if expected(name, base, variant) is None
    }
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())


@pytest.mark.parametrize("variant", VARIANTS, ids=", ".join)
def test_all_that_may_differ_does(decided: Decided, variant: tuple[str, str]) -> None:
    seen = {
        expected(name, base, variant)
        for device in DEVICES
        for _, base, derived in pairs(decided, device, variant)
        for name in differing(base, derived)
    }
    assert seen >= set(DECIDED[variant[0]].differences[variant[1]])


@pytest.mark.parametrize("first", FIRST, ids=", ".join)
@pytest.mark.parametrize("device", DEVICES)
def test_most_option_sets_resolve(decided: Decided, device: str, first: tuple[str, str]) -> None:
    refusals = [base.get("refusal") for _, base, _ in pairs(decided, device, first)]
    assert refusals.count(None) >= (40 if device in MAIN else 10)
    # Not what fails for want of something that is not simulated: that would compare nothing.
    upstreams = ("ValueError: ", "AssertionError: ")
    assert [text for text in refusals if text is not None and not text.startswith(upstreams)] == []


@pytest.mark.parametrize("first", FIRST, ids=", ".join)
def test_some_option_sets_are_refused(decided: Decided, first: tuple[str, str]) -> None:
    assert any("refusal" in base for device in DEVICES for _, base, _ in pairs(decided, device, first))


@pytest.mark.parametrize("first", FIRST, ids=", ".join)
def test_upstream_sees_the_simulated_devices(decided: Decided, first: tuple[str, str]) -> None:
    _, base, _ = zip(*(next(pairs(decided, device, first)) for device in DEVICES), strict=True)
    assert [decisions["device_sm"] for decisions in base] == ["0", "80", "90", "100", "94", "0"]
    names = ("resolved.attention_backend", "args.attention_backend")  # the first where `args` is what was asked for
    backends = [next(decisions[name] for name in names if name in decisions) for decisions in base]
    # An SM80 and an SM90 have the same in some releases.
    assert len(set(backends)) >= 5, backends
    assert backends[-2:] == ["'aiter'", "'ascend'"]
