"""The trained checkpoint with layers of whole blocks answers as it does, and upstream can quantise all of them."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from engine.harness import HELD_OUT
from reference.cases import make_checkpoint, read_config
from reference.fp8 import BLOCK, dequantise, quantise
from reference.fp8_truth import judge_quantised
from reference.greedy import judge, steps_with_drafts
from safetensors.torch import load_file

from models.qwen3_next_ext.blocks import RANKS, fit_blocks
from models.qwen3_next_ext.case import OFF

NAME = "qwen3-next-ext"
RUNS = [(HELD_OUT[300 * i : 300 * i + 1 + 25 * i], HELD_OUT[300 * i + 1 + 25 * i :][:32]) for i in range(12)]


@pytest.mark.parametrize("changes", [{}, OFF], ids=["all on", "all off"])
def test_no_answer_changes(changes: dict[str, object], reference_process: ProcessPoolExecutor, tmp_path: Path) -> None:
    for name in ("trained", "fitted"):
        make_checkpoint(NAME, tmp_path / name, changes)
    fit_blocks(tmp_path / "fitted")
    before, after = (reference_process.submit(judge, NAME, tmp_path / name, RUNS) for name in ("trained", "fitted"))
    for one, other in zip(before.result(), after.result(), strict=True):
        assert one.tokens == other.tokens
        assert [*other.prompt_logprobs, *other.logprobs] == pytest.approx(
            [*one.prompt_logprobs, *one.logprobs], abs=2e-4, rel=0
        )


def test_the_draft_proposes_the_same(reference_process: ProcessPoolExecutor, tmp_path: Path) -> None:
    for name in ("trained", "fitted"):
        make_checkpoint(NAME, tmp_path / name)
    fit_blocks(tmp_path / "fitted")
    before, after = (
        reference_process.submit(steps_with_drafts, NAME, tmp_path / name, RUNS) for name in ("trained", "fitted")
    )
    assert before.result() == after.result()


def test_each_rank_has_whole_blocks_of_all_that_is_quantised(tmp_path: Path) -> None:
    """Upstream asks for that of each part of a merged layer, and of experts."""
    make_checkpoint(NAME, tmp_path / "fitted")
    fit_blocks(tmp_path / "fitted")
    layers = quantise(tmp_path / "fitted", tmp_path / "quantised")
    tensors = {k: v for file in (tmp_path / "fitted").glob("*.safetensors") for k, v in load_file(file).items()}
    for layer in layers:
        out, size = tensors[f"{layer}.weight"].shape
        shared, whole = (size, out) if layer.endswith(("o_proj", "out_proj", "down_proj")) else (out, size)
        assert shared % (RANKS * BLOCK) == 0
        assert whole % BLOCK == 0
    config = read_config(tmp_path / "fitted")
    for kind in ("key", "value"):  # queries, keys, values and gates are one weight in a checkpoint
        assert config[f"linear_num_{kind}_heads"] * config[f"linear_{kind}_head_dim"] % (RANKS * BLOCK) == 0


def test_a_quantised_checkpoint_is_judged_by_its_weights_and_by_its_format(
    reference_process: ProcessPoolExecutor, tmp_path: Path
) -> None:
    """Weights in FP8 are others, though not far from what they were; inputs in FP8 cost more than bfloat16 does."""
    make_checkpoint(NAME, tmp_path / "fitted")
    fit_blocks(tmp_path / "fitted")
    quantise(tmp_path / "fitted", tmp_path / "quantised")
    dequantise(tmp_path / "quantised", tmp_path / "dequantised")
    asked = {
        "fitted": (judge, "fitted", torch.float32),
        "truth": (judge_quantised, "quantised", torch.float32),
        "its weights": (judge, "dequantised", torch.float32),
        "rounded": (judge_quantised, "quantised", torch.bfloat16),
        "bfloat16": (judge, "dequantised", torch.bfloat16),
    }
    answers = {
        name: reference_process.submit(by, NAME, tmp_path / folder, RUNS, dtype)
        for name, (by, folder, dtype) in asked.items()
    }
    logprobs = {
        name: torch.tensor([x for verdict in answer.result() for x in (*verdict.prompt_logprobs, *verdict.logprobs)])
        for name, answer in answers.items()
    }
    assert torch.equal(logprobs["truth"], logprobs["its weights"])
    distance = {name: (found - logprobs["truth"]).abs().mean().item() for name, found in logprobs.items()}
    assert 0.01 < distance["fitted"] < 0.2
    assert 1.5 * distance["bfloat16"] < distance["rounded"] < 0.2
