"""The shape that upstream names a file by, from what it reads of a checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
from overlay_tools.errors import TuneError
from overlay_tools.proving.tune.shape import shape_of

QWEN = {
    "num_experts": 512,
    "num_fused_shared_experts": 0,
    "top_k": 10,
    "hidden_size": 2048,
    "intermediate_size": 512,
    "activation": "silu",
    "is_gated": True,
}
FUSED = {**QWEN, "num_experts": 513, "num_fused_shared_experts": 1, "top_k": 11}


def facts(
    layer: dict[str, Any] | None = QWEN, server: dict[str, Any] | None = None, **others: object
) -> dict[str, Any]:
    served = {"tp_size": 1, "ep_size": 1, **(server or {})}
    read = {"experts": 512, "layer": layer, "problem": "", "dtype": "bfloat16", "quantization": None, "block": None}
    return {**read, "server": served, **others}


def test_it_is_that_of_the_layer_that_upstream_makes() -> None:
    """Whatever the configuration says: upstream adds shared and redundant experts."""
    shape = shape_of(facts({**QWEN, "num_experts": 528}), "model")
    assert (shape.experts, shape.all_experts, shape.shared) == (528, 528, 0)
    assert (shape.width, shape.hidden, shape.topk, shape.activation) == (512, 2048, 10, "silu")
    assert (shape.fp8, shape.block) == (False, ())


@pytest.mark.parametrize(
    ("layer", "server", "experts", "width"),
    [
        (QWEN, {"tp_size": 4}, 512, 128),
        (QWEN, {"tp_size": 4, "ep_size": 4}, 128, 512),
        (QWEN, {"tp_size": 8, "ep_size": 2, "moe_dp_size": 2}, 256, 256),
        ({**QWEN, "num_experts": 528}, {"tp_size": 4, "ep_size": 4}, 132, 512),
        (FUSED, {"tp_size": 4}, 513, 128),
    ],
)
def test_ranks_divide_it(layer: dict[str, Any], server: dict[str, Any], experts: int, width: int) -> None:
    shape = shape_of(facts(layer, server), "model")
    assert (shape.experts, shape.width) == (experts, width)
    assert shape.all_experts == layer["num_experts"]
    assert (shape.topk, shape.shared) == (layer["top_k"], layer["num_fused_shared_experts"])


def test_fp8_has_blocks_where_the_checkpoint_says_so() -> None:
    assert shape_of(facts(QWEN, quantization="fp8", block=[128, 128]), "model").block == (128, 128)
    whole = shape_of(facts(QWEN, quantization="fp8"), "model")
    assert (whole.fp8, whole.block) == (True, ())
    assert whole.bytes == 3 * 512 * 512 * 2048


def test_it_reads_as_a_person_would_say_it() -> None:
    shape = shape_of(facts(QWEN, {"tp_size": 4, "ep_size": 4}, quantization="fp8", block=[128, 128]), "model")
    said = "128 of 512 experts of 2048 x 512, 10 a token, fp8, scales of blocks of 128 x 128"
    assert str(shape) == said
    assert str(shape_of(facts(), "model")) == "512 experts of 2048 x 512, 10 a token, bfloat16"
    said = "513 experts of 2048 x 512 (1 of them shared), 11 a token, bfloat16"
    assert str(shape_of(facts(FUSED), "model")) == said


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (facts(None, experts=None), "model has no experts: its configuration has none of num_experts, n_routed"),
        (facts(None, experts=0), "model has no experts"),
        (facts(None), "model has no experts: upstream builds it without a layer of them"),
        (facts(None, problem="ValueError: no"), r"Upstream does not build model: ValueError: no\."),
        (facts(None, {"moe_a2a_backend": "deepep"}, problem="no"), "with `--moe-a2a-backend deepep`"),
        (facts({**QWEN, "top_k": None}), "does not say to how many experts a token goes"),
        (facts({**QWEN, "is_gated": False}), "with experts that are not gated"),
        (facts(FUSED, {"tp_size": 4, "ep_size": 2}), "compute with the others or apart, with --ep-size 2"),
        (facts(QWEN, {"tp_size": 3}), "512 experts over 1, a width of 512 over 3"),
        (facts(QWEN, {"tp_size": 3, "ep_size": 3}), "512 experts over 3, a width of 512 over 1"),
        (facts(QWEN, {"ep_size": 2}), "a width of 512 over 0"),
        (facts(QWEN, {"moe_runner_backend": "flashinfer_trtllm"}), "with `--moe-runner-backend flashinfer_trtllm`"),
        (facts(QWEN, {"moe_a2a_backend": "deepep"}), "with `--moe-a2a-backend deepep`"),
        (facts(QWEN, {"enable_deterministic_inference": True}), "--enable-deterministic-inference"),
        (facts(QWEN, quantization="awq"), "quantized as awq"),
        (facts(QWEN, dtype="float32"), "in float32"),
        (facts({**QWEN, "activation": "relu2"}), "with the activation relu2"),
    ],
)
def test_what_has_no_tiles_to_tune_is_refused(found: dict[str, Any], said: str) -> None:
    with pytest.raises(TuneError, match=said) as caught:
        shape_of(found, "model")
    assert len(caught.value.problems) == 1
    assert caught.value.hint


def test_what_runs_in_triton_anyhow_is_taken() -> None:
    served = {"moe_runner_backend": "triton", "moe_a2a_backend": "none", "enable_deterministic_inference": False}
    assert shape_of(facts({**QWEN, "activation": "gelu"}, served, dtype="float16"), "model").activation == "gelu"
