"""Requests that bring embeddings, prefilled in batches of their own.

Upstream puts the embeddings that some requests of a batch have in the place of the tokens of all, and before 0.5.10
all that a request has in the place of each chunk of it, and of what it has answered before it was retracted. Its
scheduler ends with that, or computes other requests from what is not theirs.
"""

import functools
from collections.abc import Callable
from typing import Any

import sglang
from packaging.version import Version


@functools.cache
def keep_apart() -> None:
    """Let upstream's scheduler begin another batch where a request of the other kind comes next."""
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.schedule_policy import PrefillAdder

    PrefillAdder.add_one_req = _of_one_kind(PrefillAdder.add_one_req)
    if Version(sglang.__version__) < Version("0.5.10"):
        ScheduleBatch.prepare_for_extend = _of_a_chunk(ScheduleBatch.prepare_for_extend)
        Req.reset_for_retract = _without_answer(Req.reset_for_retract)


def fault_of_embeddings(server_args: Any) -> str:
    """Say why a server with these arguments takes no request that brings embeddings; "" if it does.

    Before 0.5.10, upstream leaves them with a batch when it has been prefilled, and adds the tokens of others to it.
    """
    if Version(sglang.__version__) >= Version("0.5.10"):
        return ""
    names = ("speculative_algorithm", "enable_mixed_chunk", "enable_piecewise_cuda_graph")
    flags = [f"--{name.replace('_', '-')}" for name in names if getattr(server_args, name)]
    said = f"sglang {sglang.__version__} takes no input_embeds with {', '.join(flags)}; send tokens, or serve without"
    return said if flags else ""


def _of_one_kind(upstreams: Callable[..., Any]) -> Callable[..., Any]:
    from sglang.srt.managers.schedule_policy import AddReqResult

    @functools.wraps(upstreams)
    def add_one_req(self, req, *args, **kwargs):
        embeds = req.input_embeds is not None
        if any((other.input_embeds is not None) != embeds for other in self.can_run_list):
            return AddReqResult.OTHER
        return upstreams(self, req, *args, **kwargs)

    return add_one_req


def _without_answer(upstreams: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(upstreams)
    def reset_for_retract(self):
        upstreams(self)
        if self.input_embeds is not None:  # there are none of what has been answered: it is answered again
            self.output_ids = []

    return reset_for_retract


def _of_a_chunk(upstreams: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(upstreams)
    def prepare_for_extend(self):
        whole = [(req, req.input_embeds) for req in self.reqs if req.input_embeds is not None]
        for req, embeds in whole:
            start = len(req.prefix_indices)
            req.input_embeds = embeds[start : start + req.extend_input_len]
        try:
            return upstreams(self)
        finally:
            for req, embeds in whole:
                req.input_embeds = embeds

    return prepare_for_extend
