"""What a model adds to upstream's is loaded under any name, also under one that upstream's own loader leaves out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.models.llama import LlamaForCausalLM
from sglang.srt.models.qwen2 import Qwen2ForCausalLM
from sglang.srt.models.qwen3 import Qwen3ForCausalLM
from sglang.srt.models.qwen3_next import Qwen3NextForCausalLM
from sglang.srt.models.qwen3_next_mtp import Qwen3NextForCausalLMMTP
from torch import nn

from engine.harness import ours

checked_updates = ours("model_loader.checked_updates")
make_check = ours("model_loader.quantised_tensors").make_check

CONFIG = SimpleNamespace(tie_word_embeddings=False, num_experts=2, dtype="float32")
DRAFT = "mtp."


class Part(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """Has one projection."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, nn.Linear(3, 2))


def derived(upstreams: type, draft: str = "", *, named: bool = True) -> Any:  # noqa: ANN401
    """Make a model of nothing but what it adds, with upstream's loader; `named`, whether it says that it adds it."""

    class Derived(upstreams):  # type: ignore[misc]
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.config, self.quant_config = CONFIG, None
            self.enable_shared_expert_fusion, self.num_fused_shared_experts = False, 0
            self.model = nn.Module()
            self.projector, self.mtp_gain = nn.Linear(3, 2), nn.Parameter(torch.zeros(4))
            if named:  # some of upstream's loaders have no place for these, and say so
                self.model.layers, self.adapter = nn.ModuleList([Part("gate_proj")]), Part("up_proj")
                self.register_buffer("seen", torch.zeros(4))
            tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
            self.places = {name.replace("model.", draft, 1) if draft else name: t for name, t in tensors.items()}
            shapes = {name: tuple(tensor.shape) for name, tensor in self.places.items()}
            checked_updates.serve_checked(self, make_check(self, shapes, draft=draft, own=shapes if named else ()))

        def load_weights(self, weights: Any) -> None:  # noqa: ANN401
            checked_updates.load_checked(self, weights, super().load_weights)

    return Derived()


@pytest.mark.parametrize(
    ("upstreams", "draft"),
    [
        (LlamaForCausalLM, ""),
        (Qwen2ForCausalLM, ""),
        (Qwen3ForCausalLM, ""),
        (Qwen3NextForCausalLM, ""),
        (Qwen3NextForCausalLMMTP, DRAFT),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_each_is_loaded(upstreams: type, draft: str, whole: bool) -> None:
    model = derived(upstreams, draft)
    values = {name: torch.randn(tensor.shape) for name, tensor in model.places.items()}
    if whole:
        model.load_weights(iter(values.items()))
    for name, value in values.items():
        if not whole:
            with checked_updates.updating(complete=False):
                model.load_weights([(name, value)])
        assert torch.equal(model.places[name], value), name
    checked_updates._served.clear()


@pytest.mark.parametrize(
    ("upstreams", "lost"), [(LlamaForCausalLM, "projector.weight"), (Qwen3NextForCausalLM, "mtp_gain")]
)
def test_what_upstreams_loader_leaves_out_is_named(upstreams: type, lost: str) -> None:
    model = derived(upstreams, named=False)
    with pytest.raises(ValueError, match=f"{lost}: upstream's loader leaves it out"):
        model.load_weights((name, torch.randn(tensor.shape)) for name, tensor in model.places.items())
    checked_updates._served.clear()


@pytest.mark.parametrize("filled", [True, False])
def test_a_tied_head_beside_the_embeddings_must_be_filled(filled: bool) -> None:
    model = nn.Module()
    model.config, model.quant_config = SimpleNamespace(tie_word_embeddings=True, dtype="float32"), None
    model.model, model.lm_head = nn.Module(), nn.Linear(3, 5, bias=False)
    model.model.embed_tokens = nn.Embedding(5, 3)
    checked_updates.serve_checked(model, make_check(model, {"model.embed_tokens.weight": (5, 3)}))

    def load(weights: Any) -> None:  # noqa: ANN401
        for _, tensor in weights:
            model.model.embed_tokens.weight.data.copy_(tensor)
            if filled:
                model.lm_head.weight.data.copy_(tensor)

    def start() -> None:
        checked_updates.load_checked(model, [("model.embed_tokens.weight", torch.ones(5, 3))], load)

    if filled:
        start()
    else:
        with pytest.raises(ValueError, match=r"lm_head\.weight: .* a head of its own and leaves it empty"):
            start()
    checked_updates._served.clear()
