"""Attention of upstream's ``torch_native`` backend with less work: all requests of a decode step at once.

Upstream walks through the requests of a batch, in each layer; and where a part of a prompt is in the cache already, it
computes attention for that part too and drops it. Both wrappers leave encoders and their cross attention to it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

_WASTE = 2
"""Requests are computed at once while that reads at most so many times the tokens that they have."""


def decode_at_once(run: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Wrap ``TorchNativeAttnBackend._run_sdpa_forward_decode``: each request has one query.

    :param run: upstream's method; it takes, and fills, ``query`` and ``output`` [requests, heads, head size].
    """

    @functools.wraps(run)
    def call(
        self: Any,
        query: torch.Tensor,
        output: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        req_to_token: torch.Tensor,
        req_pool_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        encoder_lens: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        where = (k_cache, v_cache, req_to_token, req_pool_indices, seq_lens)
        if encoder_lens is not None or options.get("is_cross_attn"):
            return run(self, query, output, *where, encoder_lens, **options)
        lengths = seq_lens.tolist()
        together = len(lengths) * max(lengths, default=0) <= _WASTE * sum(lengths)
        step = len(lengths) if together else 1
        for start in range(0, len(lengths), step or 1):
            of = slice(start, start + step)
            longest = max(lengths[of])
            places = torch.arange(longest)
            tokens = req_to_token[req_pool_indices[of], :longest]
            seen = places < seq_lens[of, None]
            # What a shorter request does not have is read from its own first token, never from another request's.
            tokens = torch.where(seen, tokens, tokens[:, :1])
            if (window := options.get("sliding_window_size")) is not None and window > -1:
                seen &= places >= seq_lens[of, None] - 1 - window
            keys, values = (_read(cache, tokens, query.dtype) for cache in (k_cache, v_cache))
            # The heads that share a key are queries of it.
            grouped = query[of].unflatten(1, (keys.shape[1], -1))
            found = scaled_dot_product_attention(
                grouped, keys, values, attn_mask=seen[:, None, None], scale=options.get("scaling")
            )
            output[of] = found.flatten(1, 2)
        return output

    return call


def extend_what_is_new(run: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Wrap ``TorchNativeAttnBackend._run_sdpa_forward_extend``: a request's queries are its last tokens alone.

    :param run: upstream's method; it takes, and fills, ``query`` and ``output`` [tokens, heads, head size].
    """

    @functools.wraps(run)
    def call(
        self: Any,
        query: torch.Tensor,
        output: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        req_to_token: torch.Tensor,
        req_pool_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        extend_prefix_lens: torch.Tensor,
        extend_seq_lens: torch.Tensor,
        encoder_lens: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        where = (k_cache, v_cache, req_to_token, req_pool_indices, seq_lens, extend_prefix_lens, extend_seq_lens)
        if encoder_lens is not None or not options.get("causal"):
            return run(self, query, output, *where, *([] if encoder_lens is None else [encoder_lens]), **options)
        start = 0
        for request, length, prefix, new in zip(
            req_pool_indices.tolist(),
            seq_lens.tolist(),
            extend_prefix_lens.tolist(),
            extend_seq_lens.tolist(),
            strict=True,
        ):
            of = slice(start, start + new)
            start += new
            keys, values = (
                _read(cache, req_to_token[request, None, :length], query.dtype) for cache in (k_cache, v_cache)
            )
            seen = None
            window = options.get("sliding_window_size")
            windowed = window is not None and -1 < window < length
            if prefix or windowed:
                at, places = torch.arange(prefix, length)[:, None], torch.arange(length)
                seen = places <= at
                if windowed:
                    seen &= places >= at - window
            found = scaled_dot_product_attention(
                query[of].transpose(0, 1)[None],
                keys,
                values,
                attn_mask=seen,
                is_causal=seen is None,
                scale=options.get("scaling"),
                enable_gqa=query.shape[1] != keys.shape[1],
            )
            output[of] = found[0].transpose(0, 1)
        return output

    return call


def _read(cache: torch.Tensor, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Read keys or values of requests from the cache.

    :param cache: [slots, heads, head size].
    :param tokens: the slots, [requests, tokens].
    :returns: [requests, heads, tokens, head size] of ``dtype``.
    """
    found = cache.index_select(0, tokens.flatten()).unflatten(0, tokens.shape)
    return found.transpose(1, 2).to(dtype)
