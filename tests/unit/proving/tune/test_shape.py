"""The shape that upstream names a file by, from what it reads of a checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
from overlay_tools.errors import TuneError
from overlay_tools.proving.tune.shape import shape_of

QWEN = {"num_experts": 512, "moe_intermediate_size": 512, "num_experts_per_tok": 10, "hidden_size": 2048}
DEEPSEEK = {"n_routed_experts": 256, "moe_intermediate_size": 2048, "num_experts_per_tok": 8, "hidden_size": 7168}
MIXTRAL = {"num_local_experts": 8, "intermediate_size": 14336, "num_experts_per_tok": 2, "hidden_size": 4096}


def facts(config: dict[str, Any], server: dict[str, Any] | None = None, **others: object) -> dict[str, Any]:
    served = {"tp_size": 1, "ep_size": 1, **(server or {})}
    return {"config": config, "dtype": "bfloat16", "quantization": None, "block": None, "server": served, **others}


@pytest.mark.parametrize(
    ("config", "experts", "width"),
    [(QWEN, 512, 512), ({**QWEN, "intermediate_size": 5120}, 512, 512), (DEEPSEEK, 256, 2048), (MIXTRAL, 8, 14336)],
)
def test_each_family_has_names_of_its_own(config: dict[str, Any], experts: int, width: int) -> None:
    shape = shape_of(facts(config), "model")
    assert (shape.experts, shape.width, shape.hidden) == (experts, width, config["hidden_size"])
    assert (shape.topk, shape.fp8, shape.block) == (config["num_experts_per_tok"], False, ())


@pytest.mark.parametrize(
    ("server", "experts", "width"),
    [
        ({"tp_size": 4}, 512, 128),
        ({"tp_size": 4, "ep_size": 4}, 128, 512),
        ({"tp_size": 8, "ep_size": 2, "moe_dp_size": 2}, 256, 256),
        ({"tp_size": 4, "ep_size": 4, "ep_num_redundant_experts": 16}, 132, 512),
    ],
)
def test_ranks_divide_it(server: dict[str, Any], experts: int, width: int) -> None:
    shape = shape_of(facts(QWEN, server), "model")
    assert (shape.experts, shape.width) == (experts, width)
    assert shape.all_experts == 512 + server.get("ep_num_redundant_experts", 0)


def test_fp8_has_blocks_where_the_checkpoint_says_so() -> None:
    assert shape_of(facts(QWEN, quantization="fp8", block=[128, 128]), "model").block == (128, 128)
    whole = shape_of(facts(QWEN, quantization="fp8"), "model")
    assert (whole.fp8, whole.block) == (True, ())
    assert whole.bytes == 3 * 512 * 512 * 2048


def test_it_reads_as_a_person_would_say_it() -> None:
    shape = shape_of(facts(QWEN, {"tp_size": 4, "ep_size": 4}, quantization="fp8", block=[128, 128]), "model")
    said = "128 of 512 experts of 2048 x 512, 10 a token, fp8, scales of blocks of 128 x 128"
    assert str(shape) == said
    assert str(shape_of(facts(QWEN), "model")) == "512 experts of 2048 x 512, 10 a token, bfloat16"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (facts({"hidden_size": 2048}), "model has no experts: its configuration has none of num_experts, n_routed"),
        (facts({**QWEN, "num_experts": 0}), "model has no experts"),
        (facts({**QWEN, "moe_intermediate_size": [512, 64]}), r"of its configuration is \[512, 64\], not one number"),
        (facts({**QWEN, "num_experts_per_tok": None}), "num_experts_per_tok or .* of its configuration is not there"),
        (facts(QWEN, {"tp_size": 3}), "512 experts over 1, a width of 512 over 3"),
        (facts(QWEN, {"tp_size": 3, "ep_size": 3}), "512 experts over 3, a width of 512 over 1"),
        (facts(QWEN, {"ep_size": 2}), "a width of 512 over 0"),
        (facts(QWEN, {"moe_runner_backend": "flashinfer_trtllm"}), "with `--moe-runner-backend flashinfer_trtllm`"),
        (facts(QWEN, {"moe_a2a_backend": "deepep"}), "with `--moe-a2a-backend deepep`"),
        (facts(QWEN, {"enable_deterministic_inference": True}), "--enable-deterministic-inference"),
        (facts(QWEN, quantization="awq"), "quantized as awq"),
        (facts(QWEN, dtype="float32"), "in float32"),
        (facts({**QWEN, "hidden_act": "relu2"}), "with the activation relu2"),
    ],
)
def test_what_has_no_tiles_to_tune_is_refused(found: dict[str, Any], said: str) -> None:
    with pytest.raises(TuneError, match=said) as caught:
        shape_of(found, "model")
    assert len(caught.value.problems) == 1
    assert caught.value.hint


def test_what_runs_in_triton_anyhow_is_taken() -> None:
    served = {"moe_runner_backend": "triton", "moe_a2a_backend": "none", "enable_deterministic_inference": False}
    assert shape_of(facts({**QWEN, "hidden_act": "gelu"}, served, dtype="float16"), "model").activation == "gelu"
