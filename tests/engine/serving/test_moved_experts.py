"""A router sends tokens to where its experts are at that moment, also after they were moved between ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from engine.harness import ours

moved_experts = ours("layers.moved_experts")


class Router(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """Keeps what it is told of where experts are."""

    def forward(self, hidden: object, logits: object, *, expert_location_dispatch_info: object = None) -> object:
        return expert_location_dispatch_info


class Layer(nn.Module):  # type: ignore[misc]
    def __init__(self, router: nn.Module | None) -> None:
        super().__init__()
        self.mlp = nn.Module()
        if router is not None:
            self.mlp.topk = router


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stand for a server: `places`, where a layer's experts are; whether its ranks agree; whether it sends tokens."""
    server = SimpleNamespace(places={0: "at first", 1: "at first", 2: "at first"}, agree=True, sends=False)

    def init_new(layer_id: int) -> Any:  # noqa: ANN401
        if server.places is None:
            return None
        return SimpleNamespace(place=server.places[layer_id], **({"rank_invariant": True} if server.agree else {}))

    monkeypatch.setattr(moved_experts, "get_global_expert_location_metadata", object)
    monkeypatch.setattr(moved_experts, "ExpertLocationDispatchInfo", SimpleNamespace(init_new=init_new))
    backend = SimpleNamespace(is_none=lambda: not server.sends)
    monkeypatch.setattr(moved_experts, "get_moe_a2a_backend", lambda: backend)
    return server


def layers() -> list[Layer]:
    """Make layers of which the second has no experts."""
    return [Layer(Router()), Layer(None), Layer(Router())]


def test_each_layer_asks_where_its_own_experts_are_whenever_it_runs(server: SimpleNamespace) -> None:
    first, _, last = made = layers()
    moved_experts.follow_moved_experts(made)
    assert first.mlp.topk(0, 0).place == "at first"
    server.places[2] = "moved"
    assert first.mlp.topk(0, 0).place == "at first"
    assert last.mlp.topk(0, 0).place == "moved"
    assert last.mlp.topk(0, 0, expert_location_dispatch_info=None).place == "moved"
    assert last.mlp.topk(0, 0, expert_location_dispatch_info="upstream's") == "upstream's"


def test_nothing_is_added_where_no_expert_moves(server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    server.places = None
    first, *_ = made = layers()
    moved_experts.follow_moved_experts(made)
    assert not first.mlp.topk._forward_pre_hooks
    server.places = {0: "at first", 1: "at first", 2: "at first"}
    monkeypatch.setattr(moved_experts, "get_global_expert_location_metadata", lambda: None)
    moved_experts.follow_moved_experts(made)
    assert not first.mlp.topk._forward_pre_hooks


def test_ranks_that_would_disagree_are_refused(server: SimpleNamespace) -> None:
    server.agree = False
    with pytest.raises(ValueError, match="--enable-eplb and --init-expert-location need --moe-a2a-backend in sglang"):
        moved_experts.follow_moved_experts(layers())
    server.sends = True  # each token is then one rank's alone
    first, *_ = made = layers()
    moved_experts.follow_moved_experts(made)
    assert first.mlp.topk(0, 0).place == "at first"
