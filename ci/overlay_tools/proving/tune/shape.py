"""The shape of a checkpoint's experts on one GPU, as upstream looks for a file of tiles by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from overlay_tools.errors import TuneError

# What configurations call these; the first one that is there counts.
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
_WIDTH = ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")
_TOPK = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
_ACTIVATION = ("hidden_act", "mlp_hidden_act")
SHARED = "n_shared_experts"
KEYS = (*_EXPERTS, *_WIDTH, *_TOPK, *_ACTIVATION, SHARED, "hidden_size")
_COMPUTED = ("bfloat16", "float16")  # what the kernel computes in


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What one GPU has of a layer's experts.

    `experts` there, of `all_experts`; `width`, of an expert's middle; `hidden`, of the model; `topk`, experts a token;
    `dtype`, of activations; `fp8`, whether weights are in that, with a scale for each `block` of rows and columns, or
    for each expert where that is empty; `activation`, silu or gelu.
    """

    experts: int
    all_experts: int
    width: int
    hidden: int
    topk: int
    dtype: str
    fp8: bool = False
    block: tuple[int, ...] = ()
    activation: str = "silu"

    @property
    def bytes(self) -> int:
        """Return what a layer's weights take."""
        return 3 * self.experts * self.width * self.hidden * (1 if self.fp8 else 2)

    def __str__(self) -> str:
        some = f" of {self.all_experts}" * (self.experts < self.all_experts)
        scales = f", scales of blocks of {' x '.join(map(str, self.block))}" if self.block else ""
        kind = f"fp8{scales}" if self.fp8 else self.dtype
        return f"{self.experts}{some} experts of {self.hidden} x {self.width}, {self.topk} a token, {kind}"


def shape_of(facts: Mapping[str, Any], name: str) -> Shape:
    """Return the shape that a checkpoint has.

    Parameters: `facts`, what `kernel_script.read_facts` finds; `name`, of the checkpoint.
    Raises TuneError if it has no experts, or upstream's kernel does not compute them as they would be served.
    """
    config, server = facts["config"], facts["server"]
    if _first(config, _EXPERTS) in (None, 0, 1):
        raise TuneError(
            f"{name} has no experts: its configuration has none of {', '.join(_EXPERTS)}.",
            hint="Only the layers of a mixture of experts have tiles to tune.",
        )
    _check_served(facts, name)
    experts, width, topk = (_whole(config, keys, name) for keys in (_EXPERTS, _WIDTH, _TOPK))
    hidden = _whole(config, ("hidden_size",), name)
    experts += server.get("ep_num_redundant_experts") or 0
    ranks = server["ep_size"] or 1
    parts = (server["tp_size"] or 1) // ranks // (server.get("moe_dp_size") or 1)
    if experts % ranks or parts < 1 or width % parts:
        raise TuneError(
            f"{name} cannot be spread so: {experts} experts over {ranks}, a width of {width} over {parts}.",
            hint="Give --tp-size and --ep-size after the second -- as to the server.",
        )
    fp8 = facts["quantization"] == "fp8"
    return Shape(
        experts=experts // ranks,
        all_experts=experts,
        width=width // parts,
        hidden=hidden,
        topk=topk,
        dtype=facts["dtype"],
        fp8=fp8,
        block=tuple(facts["block"] or ()) if fp8 else (),
        activation=_first(config, _ACTIVATION) or "silu",
    )


def _check_served(facts: Mapping[str, Any], name: str) -> None:
    """Raise TuneError if what is served would not be this kernel with a file of tiles."""
    server, why = facts["server"], ""
    runner, sender = server.get("moe_runner_backend") or "auto", server.get("moe_a2a_backend") or "none"
    if runner not in ("auto", "triton"):
        why = f"with `--moe-runner-backend {runner}`, which takes no tiles: `triton` does"
    elif sender != "none":
        why = f"with `--moe-a2a-backend {sender}`, which takes no tiles"
    elif server.get("enable_deterministic_inference"):
        why = "with `--enable-deterministic-inference`, which reads no file of tiles"
    elif facts["quantization"] not in (None, "fp8"):
        why = f"quantized as {facts['quantization']}; tune measures experts in bfloat16, float16 and fp8"
    elif facts["dtype"] not in _COMPUTED:
        why = f"in {facts['dtype']}; upstream's kernel computes in {' and '.join(_COMPUTED)}"
    elif (activation := _first(facts["config"], _ACTIVATION) or "silu") not in ("silu", "gelu"):
        why = f"with the activation {activation}; tune measures silu and gelu"
    if why:
        raise TuneError(
            f"{name} is served {why}.", hint="What follows the second -- are arguments of sglang.launch_server."
        )


def _first(config: Mapping[str, Any], keys: Sequence[str]) -> Any:  # noqa: ANN401  # whatever a configuration has
    return next((config[key] for key in keys if config.get(key) is not None), None)


def _whole(config: Mapping[str, Any], keys: Sequence[str], name: str) -> int:
    found = _first(config, keys)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        said = "is not there" if found is None else f"is {found!r}, not one number"
        raise TuneError(
            f"{name}: {' or '.join(keys)} of its configuration {said}.",
            hint="tune takes layers of experts that are all alike.",
        )
    return found
