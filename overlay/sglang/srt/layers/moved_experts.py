"""Experts that a server moves between its ranks while it serves, or has more than one copy of (EPLB)."""

from collections.abc import Iterable

import sglang
from sglang.srt.eplb.expert_location import get_global_expert_location_metadata
from sglang.srt.eplb.expert_location_dispatch import ExpertLocationDispatchInfo
from sglang.srt.layers.moe.utils import get_moe_a2a_backend
from torch import nn


def follow_moved_experts(layers: Iterable[nn.Module]) -> None:
    """Let each router of these decoder layers send tokens to where its experts are now.

    Upstream's blocks do so where they send tokens to other ranks (DeepEP), and from 0.5.23 on everywhere. Until then
    they go on with the places that experts had first, and answers are wrong once one has moved.
    Raises ValueError in a release in which ranks with the same tokens would take different copies of an expert.
    """
    if get_global_expert_location_metadata() is None:
        return
    for number, layer in enumerate(layers):
        router = getattr(getattr(layer, "mlp", None), "topk", None)
        if router is None or (info := ExpertLocationDispatchInfo.init_new(layer_id=number)) is None:
            continue  # no experts here, or none that moves
        if get_moe_a2a_backend().is_none() and not hasattr(info, "rank_invariant"):
            raise ValueError(
                f"--enable-eplb and --init-expert-location need --moe-a2a-backend in sglang {sglang.__version__}: "
                "without one its ranks would take different copies of an expert, and tokens would be wrong"
            )
        router.register_forward_pre_hook(_find_experts(number), with_kwargs=True)


def _find_experts(number: int):
    def find(router: nn.Module, arguments: tuple, options: dict):
        if options.get("expert_location_dispatch_info") is None:
            options["expert_location_dispatch_info"] = ExpertLocationDispatchInfo.init_new(layer_id=number)
        return arguments, options

    return find
