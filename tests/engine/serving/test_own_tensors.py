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


def derived(upstreams: type, draft: str = "") -> Any:  # noqa: ANN401
    """Make a model of nothing but what it adds, with upstream's loader."""

    class Derived(upstreams):  # type: ignore[misc]
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.config, self.quant_config = CONFIG, None
            self.enable_shared_expert_fusion, self.num_fused_shared_experts = False, 0
            self.model = nn.Module()
            self.model.layers = nn.ModuleList([Part("gate_proj")])
            self.projector, self.adapter = nn.Linear(3, 2), Part("up_proj")
            self.mtp_gain = nn.Parameter(torch.zeros(4))
            self.register_buffer("seen", torch.zeros(4))
            tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
            self.places = {name.replace("model.", draft, 1) if draft else name: t for name, t in tensors.items()}
            shapes = {name: tuple(tensor.shape) for name, tensor in self.places.items()}
            checked_updates.serve_checked(self, make_check(self, shapes, draft=draft, own=shapes))

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
