"""Speculative decoding (a chain of drafts) for upstream's ``torch_native`` attention backend.

Upstream drafts and verifies only with its GPU backends and with AMX. The native backend computes the right attention
once each pass is described to it as a plain extend or decode; these wrappers do that.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch


class _View:
    """A forward batch with some of its fields replaced."""

    def __init__(self, batch: Any, **fields: Any):
        self.__dict__.update(fields, _batch=batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)


def describe_speculative_extend(forward_extend: Callable) -> Callable:
    """Wrap ``TorchNativeAttnBackend.forward_extend`` to see drafts as an extension of each sequence.

    Verification appends ``draft_token_num`` tokens to the ``seq_lens`` verified ones, causally. A draft extend has
    ``seq_lens`` that count its own tokens already, and may carry prefix lengths of the pass before.

    :raises NotImplementedError: when verifying a tree of drafts, whose mask the native backend does not apply.
    """

    @functools.wraps(forward_extend)
    def call(self, q, k, v, layer, forward_batch, save_kv_cache=True, **kwargs):
        mode, lengths = forward_batch.forward_mode, forward_batch.seq_lens
        if mode.is_target_verify():
            _require_chain(getattr(forward_batch.spec_info, "topk", None))
            drafts = torch.full_like(lengths, forward_batch.spec_info.draft_token_num)
            forward_batch = _View(
                forward_batch, seq_lens=lengths + drafts, extend_prefix_lens=lengths, extend_seq_lens=drafts
            )
        elif mode.name.startswith("DRAFT_EXTEND"):
            forward_batch = _View(forward_batch, extend_prefix_lens=lengths - forward_batch.extend_seq_lens)
        return forward_extend(self, q, k, v, layer, forward_batch, save_kv_cache, **kwargs)

    return call


def offer_torch_native(create_backend: Callable) -> Callable:
    """Wrap ``DraftBackendFactory._create_backend`` to know ``torch_native``.

    Since 0.5.18 the makers return the backend's name with it, which the signature shows by ``stamps_children``.
    """
    named = "stamps_children" in create_backend.__code__.co_varnames

    @functools.wraps(create_backend)
    def call(self, backend_name, backend_map, *args, **kwargs):
        def make():
            native = importlib.import_module("sglang.srt.layers.attention.torch_native_backend").TorchNativeAttnBackend
            if backend_name == "decode_attention_backend":
                _require_chain(self.topk)
                backend = _NativeDraftSteps(native, self.draft_model_runner, self.speculative_num_steps)
            else:
                backend = native(self.draft_model_runner)
            return ("torch_native", backend) if named else backend

        return create_backend(self, backend_name, {**backend_map, "torch_native": make}, *args, **kwargs)

    return call


class _NativeDraftSteps:
    """One native backend a draft step; step i sees the i + 1 tokens drafted so far besides the sequence."""

    needs_cpu_seq_lens = True

    def __init__(self, native: type, model_runner: Any, steps: int):
        class Step(native):
            drafted = 0

            def forward_decode(self, q, k, v, layer, forward_batch, save_kv_cache=True, **kwargs):
                batch = _View(forward_batch, seq_lens=forward_batch.seq_lens + self.drafted)
                return super().forward_decode(q, k, v, layer, batch, save_kv_cache, **kwargs)

        self.attn_backends = [Step(model_runner) for _ in range(steps - 1)]
        for i, backend in enumerate(self.attn_backends):
            backend.drafted = i + 1

    def init_forward_metadata(self, forward_batch: Any) -> None:
        for backend in self.attn_backends:
            backend.init_forward_metadata(forward_batch)


def refuse_sampling(create: Callable) -> Callable:
    """Wrap ``TokenizerManager._create_tokenized_object`` to refuse requests that are to be sampled from drafts.

    Without a GPU upstream verifies drafts greedily whatever a request says, or, from 0.5.10 to 0.5.15, fails.

    :raises ValueError: which upstream answers with status 400.
    """

    @functools.wraps(create)
    def call(self, *args, **kwargs):
        made = create(self, *args, **kwargs)
        # A temperature of 0 has become a top_k of 1.
        if self.server_args.speculative_algorithm and getattr(made.sampling_params, "top_k", 1) != 1:
            raise ValueError(
                "on a CPU, drafts are verified greedily: send temperature 0, or serve without --speculative-algorithm"
            )
        return made

    return call


def _require_chain(topk: int | None) -> None:
    if topk != 1:
        raise NotImplementedError(f"torch_native speculative decoding: {topk=}; set speculative_eagle_topk to 1")
