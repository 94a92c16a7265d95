"""The shape of a checkpoint's experts on one GPU, as upstream looks for a file of tiles by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from overlay_tools.errors import TuneError

# What configurations call the number of experts.
KEYS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
_COMPUTED = ("bfloat16", "float16")  # what the kernel computes in


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What one GPU has of a layer's experts.

    `experts` there, of `all_experts`, of which the last ones, `shared`, are there on each GPU, and each token goes to
    them; `width`, of an expert's middle; `hidden`, of the model; `topk`, experts a token, with those; `dtype`, of
    activations; `fp8`, whether weights are in that, with a scale for each `block` of rows and columns, or for each
    expert where that is empty; `activation`, silu or gelu.
    """

    experts: int
    all_experts: int
    width: int
    hidden: int
    topk: int
    dtype: str
    shared: int = 0
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
        shared = f" ({self.shared} of them shared)" * (self.shared > 0)
        return f"{self.experts}{some} experts of {self.hidden} x {self.width}{shared}, {self.topk} a token, {kind}"


def shape_of(facts: Mapping[str, Any], name: str) -> Shape:
    """Return the shape that a checkpoint's layers of experts have, as upstream makes the first one.

    Parameters: `facts`, what `kernel_script.read_facts` finds; `name`, of the checkpoint.
    Raises TuneError if it has no experts, or upstream's kernel does not compute them as they would be served.
    """
    layer, server = facts["layer"], facts["server"]
    if facts["experts"] in (None, 0, 1):
        raise _without_experts(name, f"its configuration has none of {', '.join(KEYS)}")
    _check_served(facts, name)  # first, as that may be why it is not built
    if facts["problem"]:
        raise TuneError(
            f"Upstream does not build {name}: {facts['problem']}.",
            hint="What follows the second -- are arguments of sglang.launch_server, for one rank's share.",
        )
    if layer is None:
        raise _without_experts(name, "upstream builds it without a layer of them")
    experts, shared, width = (layer[key] for key in ("num_experts", "num_fused_shared_experts", "intermediate_size"))
    ranks = server["ep_size"] or 1
    parts = (server["tp_size"] or 1) // ranks // (server.get("moe_dp_size") or 1)
    if shared and ranks > 1:  # some models then compute them apart, which one rank does not show
        raise TuneError(
            f"{name} has shared experts that upstream may compute with the others or apart, with --ep-size {ranks}.",
            hint="Give --disable-shared-experts-fusion after the second -- and to the server.",
        )
    if (experts - shared) % ranks or parts < 1 or width % parts:
        raise TuneError(
            f"{name} cannot be spread so: {experts} experts over {ranks}, a width of {width} over {parts}.",
            hint="Give --tp-size and --ep-size after the second -- as to the server.",
        )
    fp8 = facts["quantization"] == "fp8"
    return Shape(
        experts=(experts - shared) // ranks + shared,
        all_experts=experts,
        width=width // parts,
        hidden=layer["hidden_size"],
        topk=layer["top_k"],
        dtype=facts["dtype"],
        shared=shared,
        fp8=fp8,
        block=tuple(facts["block"] or ()) if fp8 else (),
        activation=layer["activation"],
    )


def _without_experts(name: str, why: str) -> TuneError:
    return TuneError(
        f"{name} has no experts: {why}.", hint="Only the layers of a mixture of experts have tiles to tune."
    )


def _check_served(facts: Mapping[str, Any], name: str) -> None:
    """Raise TuneError if what is served would not be this kernel with a file of tiles."""
    server, layer, why = facts["server"], facts["layer"] or {}, ""
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
    elif layer.get("is_gated") is False:
        why = "with experts that are not gated; tune measures gated ones"
    elif (activation := layer.get("activation", "silu")) not in ("silu", "gelu"):
        why = f"with the activation {activation}; tune measures silu and gelu"
    elif layer and layer["top_k"] is None:
        why = "by a layer that does not say to how many experts a token goes"
    if why:
        raise TuneError(
            f"{name} is served {why}.", hint="What follows the second -- are arguments of sglang.launch_server."
        )
