"""Upstream's own models on the CPU engine give what Transformers' classes of their names give; others are refused.

Each is a tiny checkpoint with random weights in the layout that Transformers writes. A release has those that both it
and its Transformers know, and that stand in `sgl_kernel.proven` for it. Known not to be right, and so refused, are
those that ask for other backends, as GPT-OSS, and Gemma, whose activation upstream computes without the approximation
by a tanh that Transformers takes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sglang
import torch
import transformers
from overlay_tools.errors import ServeError
from overlay_tools.proving.compare.engine import ask_plainly
from packaging.version import Version
from reference import checkpoints
from reference.cases import ROOT, cases
from reference.checkpoints import COMMON, drawn_for, write_checkpoint
from sgl_kernel import proven

from engine.harness import CHUNK, HELD_OUT, RELEASE, generate, server
from engine.mutations import PROMPTS, TOKENS, Models, Served

LAYERS = {"num_hidden_layers": 3}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True, "decoder_sparse_step": 1}
WINDOW = {"sliding_window": 24, "num_hidden_layers": 4}
POOLED = "a pool of windows"
GELU = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}
LATENT = checkpoints.LATENT | {"head_dim": 16}  # which Transformers has for that of the rotated part
SIGMOID = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True}
SOFTMAX = {"topk_method": "group_limited_greedy", "scoring_func": "softmax"}


def scaled(kind: str, **settings: float | list[float]) -> dict[str, Any]:
    """Give the configuration of a model that was trained on 128 tokens and is made to take 512."""
    scaling = {"rope_type": kind, "original_max_position_embeddings": 128, **settings}
    return {"max_position_embeddings": 512, "rope_scaling": scaling}


YARN = scaled("yarn", factor=4.0)
LATENT_YARN = scaled("yarn", factor=4.0, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=0.7)
SOME = (
    f"Gemma3ForCausalLM, {POOLED}",
    "Qwen2ForCausalLM",
    "MixtralForCausalLM",
    "Gemma2ForCausalLM",
    "DeepseekV3ForCausalLM",
)
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {"sliding_window": None},
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {},
    "Qwen3ForCausalLM, one key for all heads, which are wide": {"num_key_value_heads": 1, "head_dim": 48},
    "Qwen2MoeForCausalLM": EXPERTS | {"num_experts": 8, "shared_expert_intermediate_size": 64},
    "Qwen3MoeForCausalLM": EXPERTS | {"num_experts": 8},
    "MixtralForCausalLM": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "OlmoeForCausalLM": {"num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": False, "num_key_value_heads": 4},
    "Gemma2ForCausalLM": WINDOW | GELU | {"query_pre_attn_scalar": 32, "attn_logit_softcapping": 2.0},
    "Gemma3ForCausalLM": WINDOW | GELU | {"query_pre_attn_scalar": 32},
    # Layers with a window have a pool of their own, which keeps no more of a request than that.
    f"Gemma3ForCausalLM, {POOLED}": WINDOW
    | GELU
    | {
        "query_pre_attn_scalar": 32,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "is_hybrid_swa": True,
        "hybrid_layer_pattern": [1, 0] * 2,
    },
    "Phi3ForCausalLM": {},
    "OlmoForCausalLM": {"num_key_value_heads": 4},
    "Olmo2ForCausalLM": {},
    "GraniteForCausalLM": {"logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    "Glm4ForCausalLM": {"partial_rotary_factor": 0.5},
    "StableLmForCausalLM": {"partial_rotary_factor": 0.25},
    "CohereForCausalLM": {"tie_word_embeddings": True, "logit_scale": 0.5},
    "GPT2LMHeadModel": {
        "n_embd": 128,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 512,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    "Starcoder2ForCausalLM": {"sliding_window": None, "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"},
    "ArceeForCausalLM": {"hidden_act": "relu2"},
    "DeepseekV2ForCausalLM": LATENT | SOFTMAX,
    "DeepseekV2ForCausalLM, whole queries": LATENT | SOFTMAX | {"q_lora_rank": None},
    "DeepseekV2ForCausalLM, yarn": LATENT | SOFTMAX | LATENT_YARN,
    "DeepseekV3ForCausalLM": LATENT | SIGMOID,
    "DeepseekV3ForCausalLM, yarn": LATENT | SIGMOID | LATENT_YARN,
    "LlamaForCausalLM, llama3": scaled("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0),
    "LlamaForCausalLM, linear": scaled("linear", factor=4.0),
    "LlamaForCausalLM, yarn": YARN,
    "MistralForCausalLM, yarn": YARN | {"sliding_window": None},
    "Qwen2ForCausalLM, yarn": YARN,
    "Qwen3ForCausalLM, yarn": YARN,
    "Qwen3MoeForCausalLM, yarn": EXPERTS | {"num_experts": 8} | YARN,
}

UNPROVEN = "GemmaForCausalLM"
# What is known to be wrong.
WRONG: Mapping[str, Mapping[str, Any]] = {
    UNPROVEN: GELU,
    "LlamaForCausalLM, dynamic": scaled("dynamic", factor=4.0),
    # As Phi-3's own files say it: Transformers 4 takes no other keys there.
    "Phi3ForCausalLM, longrope": {
        "rope_scaling": {"type": "longrope", "long_factor": [4.0] * 16, "short_factor": [1.0] * 16},
        "original_max_position_embeddings": 128,
    },
    "Gemma3ForCausalLM, linear": WINDOW
    | GELU
    | {"layer_types": ["sliding_attention", "full_attention"] * 2}
    | scaled("linear", factor=4.0),
}


@functools.cache
def known() -> list[str]:
    """List the families that this release and its Transformers have, and that are right there."""
    folder = Path(str(sglang.__file__)).parent / "srt" / "models"
    sources = [path.read_text(encoding="utf-8") for path in folder.glob("*.py")]
    served = {name for name in FAMILIES if any(f"class {model_of(name)}(" in source for source in sources)}
    right = {name for name in FAMILIES if Version(proven.ARCHITECTURES[model_of(name)]) <= RELEASE}
    if Version("0.5.13") > RELEASE:  # which lets no configuration ask for such a pool
        right = {name for name in right if POOLED not in name}
    return [name for name in FAMILIES if name in served & right and hasattr(transformers, model_of(name))]


def model_of(name: str) -> str:
    """Give the class that both have of a family."""
    return name.partition(",")[0]


def write(name: str, folder: Path) -> None:
    """Write the checkpoint of a family, or of WRONG."""
    model = getattr(transformers, model_of(name))
    config = {
        **COMMON,
        **LAYERS,
        **{**FAMILIES, **WRONG}[name],
        "architectures": [model_of(name)],
        "model_type": model.config_class.model_type,
    }
    read = model.config_class(**config).to_dict()  # with the keys that upstream's model expects, not ours alone
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_checkpoint(folder, {**read, **config}, drawn_for(model)(config, 5))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run on some families, or on all with `--whole`."""
    if "family" in metafunc.fixturenames:
        whole = metafunc.config.getoption("--whole")
        metafunc.parametrize("family", [name for name in known() if whole or name in SOME])


@pytest.fixture(scope="module")
def models(reference_process: ProcessPoolExecutor) -> Models:
    return Models(reference_process)


def test_a_stock_model_is_transformers(family: str, models: Models, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    models.pool.submit(write, family, checkpoint).result()
    with server(checkpoint, tmp_path / "log", {"chunked_prefill_size": CHUNK}) as running:
        answers = dict(ask_plainly(running, PROMPTS, TOKENS))
        rows = models.rows(Served(server=running, folder=tmp_path, prompts=PROMPTS, answers=answers), checkpoint)
    assert {way: row.problems for way, row in rows.items() if row.problems} == {}
    assert (rows["from the cache"].cached or 0) > 0
    assert rows["decode"].distance.values > 50


def test_all_that_are_known_to_be_right_are_compared() -> None:
    """Here, or in test_parity.py as cases of upstream's own models."""
    compared = {model_of(name) for name in FAMILIES} | {case.architecture for case in cases().values() if not case.ours}
    assert compared == set(proven.ARCHITECTURES)
    page = (ROOT / "overlay" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (0\.5\.\d+) \| (.*) \|$", page, re.MULTILINE)
    named = {name: since for since, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert named == proven.ARCHITECTURES


@pytest.mark.parametrize(
    ("asked", "arguments", "named"),
    [
        (UNPROVEN, {}, UNPROVEN),
        ("LlamaForCausalLM, dynamic", {}, "rope_type dynamic"),
        ("Phi3ForCausalLM, longrope", {}, "rope_type longrope"),
        ("Gemma3ForCausalLM, linear", {}, "rope_type linear"),
        ("LlamaForCausalLM", {"kv_cache_dtype": "fp8_e4m3"}, "--kv-cache-dtype fp8_e4m3"),
        ("LlamaForCausalLM", {"quantization": "fp8"}, "quantization fp8"),
        ("LlamaForCausalLM", {"model_impl": "transformers"}, "Transformers.*"),
        ("MistralForCausalLM", {"json_model_override_args": '{"sliding_window": 64}'}, "sliding_window 64"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_not_known_to_be_right_is_refused(
    asked: str, arguments: dict[str, object], named: str, models: Models, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    models.pool.submit(write, asked, checkpoint).result()
    with pytest.raises(ServeError, match="The server ended"), server(checkpoint, tmp_path / "log", arguments):
        pytest.fail("it serves")
    said = rf"UnprovenError: {named}: not known to be right on the CPU engine in sglang .*, set {proven.SWITCH}=1"
    assert re.search(said, (tmp_path / "log").read_text(errors="replace"))


def test_the_switch_lets_it_serve(models: Models, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    models.pool.submit(write, UNPROVEN, checkpoint).result()
    with server(checkpoint, tmp_path / "log", {}, {proven.SWITCH: "1"}) as running:
        assert generate(running, [HELD_OUT[:8]], 4)
    said = rf"{UNPROVEN}: not known to be right on the CPU engine in sglang .*; {proven.SWITCH}=1 lets it serve"
    assert re.search(said, (tmp_path / "log").read_text(errors="replace"))
