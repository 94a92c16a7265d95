"""What DeepSeek-V3-Ext caches for a token, and what it says to a configuration that upstream would take for another."""

from __future__ import annotations

import importlib
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine.harness import HELD_OUT, generate, ours, server
from reference.cases import make_checkpoint
from torch import nn

from models.deepseek_v3_ext.case import CONFIG, SIZES, YARN

# Each process of a server says how large a token's cell is taken for, by which upstream sizes its pool where the user
# does not, and how large the pools are that it makes.
TOLD = """
def tell(name, what):
    def change(module):
        for kind in list(vars(module).values()):
            if isinstance(kind, type) and name in vars(kind):
                wrap(kind, name, what)
    return change

def wrap(kind, name, what):
    original = getattr(kind, name)
    def call(self, *args, **kwargs):
        found = original(self, *args, **kwargs)
        told = what(self, found)
        if told is not None:
            print(told, flush=True)
        return found
    setattr(kind, name, call)

def cell(self, found):
    return f"a cell of {found} bytes"

def pool(self, found):
    if type(self).__name__ == "MLATokenToKVPool" and hasattr(self, "kv_buffer"):  # not yet in its base's __init__
        held = sum(buffer.numel() * buffer.element_size() for buffer in self.kv_buffer)
        return f"a pool of {held} bytes for {self.size + self.page_size} tokens"

CHANGES["sglang.srt.model_executor.model_runner_kv_cache_mixin"] = tell("get_cell_size_per_token", cell)
CHANGES["sglang.srt.model_executor.pool_configurator"] = tell("_compute_cell_size", cell)
CHANGES["sglang.srt.mem_cache.memory_pool"] = tell("__init__", pool)
"""


def test_a_token_has_one_latent_vector_in_each_layer(tmp_path: Path) -> None:
    """DeepSeek-V2 (arXiv:2405.04434), section 2.1: the compressed vector and the rotated key, whatever the heads."""
    make_checkpoint("deepseek-v3-ext", tmp_path)
    with server(tmp_path, tmp_path / "log", {"max_total_tokens": 4096}, changes=TOLD) as running:
        generate(running, [HELD_OUT[:8]], 2)
    log = (tmp_path / "log").read_text(encoding="utf-8")
    cell = 4 * SIZES["num_hidden_layers"] * (SIZES["kv_lora_rank"] + SIZES["qk_rope_head_dim"])
    assert set(re.findall(r"a cell of (\d+) bytes", log)) == {str(cell)}
    [(held, tokens)] = re.findall(r"a pool of (\d+) bytes for (\d+) tokens", log)
    assert int(tokens) == 4096 + 1
    assert int(held) == int(tokens) * cell


def settled(**changes: object) -> Any:  # noqa: ANN401
    """Make the configuration of a config.json as a server does."""
    module = ours("configs.deepseek_v3_ext")
    said = json.loads(json.dumps({key: value for key, value in {**CONFIG, **changes}.items() if value is not None}))
    config = module.DeepseekV3ExtConfig.from_dict(dict(said))
    module.settle(config, said)
    return config


@pytest.mark.parametrize("given", [{}, {"attention_factor": 1.5}, {"mscale": None}, {"mscale_all_dim": None}])
def test_upstreams_rotary_positions_have_the_magnitude_of_transformers(
    given: dict[str, float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    importlib.import_module("sgl_kernel")  # it edits what comes next, and refuses to come later
    from sglang.srt.layers.rotary_embedding import RotaryEmbedding, get_rope_wrapper
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    # Old releases ask what a server was started with whether a trainer wants the same numbers.
    untrained = SimpleNamespace(rl_on_policy_target=None)
    asks = importlib.import_module(RotaryEmbedding.__module__)
    monkeypatch.setattr(asks, "get_global_server_args", lambda: untrained, raising=False)
    monkeypatch.setattr(asks, "get_exec", lambda: SimpleNamespace(deterministic=untrained), raising=False)
    scaling = {key: value for key, value in {**YARN, **given}.items() if value is not None}
    config = settled(rope_scaling=scaling)
    for_upstream = {**config.rope_scaling, "rope_type": "deepseek_yarn"}  # as it says itself of each scaling
    made = get_rope_wrapper(16, 16, 4096, 10000, False, for_upstream, device="cpu")
    config.head_dim = 16
    _, magnitude = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    assert made.mscale == pytest.approx(magnitude)
    assert for_upstream.get("mscale_all_dim") == scaling.get("mscale_all_dim")  # which scales the scores too


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "rope_type must be 'default' or 'yarn', not 'linear'",
        ),
        ({"rope_scaling": {**YARN, "truncate": False}}, "truncate must be true"),
        ({"rope_interleave": False}, "rope_interleave must be true"),
        ({"topk_method": "greedy"}, "topk_method must be"),
        ({"scoring_func": "softmax"}, "scoring_func must be"),
        ({"moe_layer_freq": 2}, "moe_layer_freq must be 1"),
        ({"norm_topk_prob": False}, "norm_topk_prob must be true"),
        ({"hidden_act": "gelu"}, "hidden_act must be"),
        ({"attention_bias": True}, "attention_bias must be false"),
        ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers must be 0 or 1"),
        ({"router_logit_bias": 0.5}, "router_logit_bias must be false or true"),
        (
            {"router_logit_biases": True},
            "router_logit_biases is not a key of this model; did you mean router_logit_bias?",
        ),
        ({"logit_softcap": math.inf}, "logit_softcap must be a finite number"),
        ({"q_lora_rnk": 8}, "q_lora_rnk is not a key of this model; did you mean q_lora_rank?"),
    ],
)
def test_what_upstream_would_take_for_another_is_named(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"config.json: {re.escape(named)}"):
        settled(**keys)


def test_a_checkpoint_of_deepseek_v3_itself_is_read() -> None:
    """With the keys that its config.json has beside those of Transformers' class."""
    more = {"aux_loss_alpha": 0.001, "ep_size": 1, "seq_aux": True, "pretraining_tp": 1, "unsloth_fixed": True}
    assert settled(**more, router_logit_bias=None, logit_transform=None, logit_softcap=None).router_logit_bias is False


def test_quark_does_not_quantise_what_it_is_loaded_from() -> None:
    check = ours("models.deepseek_v3_ext").check_quantisation
    quark, fp8 = (SimpleNamespace(get_name=lambda name=name: name) for name in ("quark", "fp8"))
    loaded, quantised = SimpleNamespace(), SimpleNamespace(quantization_config={"quant_method": "quark"})
    with pytest.raises(ValueError, match="Quark would quantise attention as well"):
        check(loaded, quark)
    for config, quant_config in ((quantised, quark), (loaded, fp8), (loaded, None)):
        check(config, quant_config)


class Halves(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """What upstream has made of two projections, of 4 and 3 + 2 rows: their weight, and the scales of its blocks."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        at: nn.Module = self
        for name in [*layer.split("."), "self_attn", "fused_qkv_a_proj_with_mqa"]:
            at.add_module(name, nn.Module())
            at = at.get_submodule(name)
        at.weight = nn.Parameter(torch.arange(18.0).view(9, 2))
        at.weight_scale_inv = nn.Parameter(torch.ones(2, 1))
        self.config = SimpleNamespace(q_lora_rank=4, kv_lora_rank=3, qk_rope_head_dim=2, num_hidden_layers=3)


@pytest.mark.parametrize(
    ("layer", "named"), [("model.layers.1", "model.layers.1"), ("model.decoder", "model.layers.3")]
)
def test_half_of_a_pair_is_updated_by_its_weight_alone(layer: str, named: str) -> None:
    extensions = ours("models.deepseek_v3_ext").DeepseekV3Extensions
    model = type("Model", (extensions, Halves), {})(layer)
    q, kv = f"{named}.self_attn.q_a_proj", f"{named}.self_attn.kv_a_proj_with_mqa"
    given = {f"{q}.weight": torch.zeros(4, 2), "model.norm.weight": torch.zeros(2)}
    assert model.faults_of_part(given) == []
    *passed, (other, half) = model.with_halves(given.items())
    assert dict(passed) == given
    assert other == f"{kv}.weight"
    assert half.tolist() == torch.arange(8.0, 18.0).view(5, 2).tolist()
    assert model.faults_of_part([f"{kv}.weight", f"{kv}.weight_scale_inv"]) == [
        f"{q}.weight_scale_inv: missing, and what is quantised is updated with it"
    ]
    both = [f"{part}.{what}" for part in (q, kv) for what in ("weight", "weight_scale_inv")]
    assert model.faults_of_part(both) == []
