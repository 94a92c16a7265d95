"""Attention of upstream's ``torch_native`` backend with less work, and with all that a layer says.

Upstream walks through the requests of a batch, in each layer; and where a part of a prompt is in the cache already, it
computes attention for that part too and drops it. It takes no notice of a layer's soft cap, before 0.5.13 of its window
either, and reads a pool that holds windows alone at places of the other pool. Both wrappers of what computes attention
leave encoders and their cross attention to it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

_WASTE = 2
"""Requests are computed at once while that reads at most so many times the tokens that they have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """What attention needs to know of a layer beside what upstream hands on.

    :param window: how many tokens before its own a query sees; None for all.
    :param cap: the soft cap of scores: they become cap * tanh(score / cap); 0 for none.
    :param place: maps the slots of tokens to those where this layer's pool has them.
    """

    window: int | None
    cap: float
    place: Callable[[torch.Tensor], torch.Tensor]


def note_layer(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Wrap ``TorchNativeAttnBackend.forward_extend`` or ``forward_decode``: note the layer that is to be computed."""

    @functools.wraps(forward)
    def call(self: Any, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
        # From 0.5.13 on, the backend has the pool.
        pool = self.token_to_kv_pool if hasattr(self, "token_to_kv_pool") else forward_batch.token_to_kv_pool
        windows_alone = getattr(pool, "layers_mapping", {}).get(layer.layer_id, (0, False))[1]
        window = layer.sliding_window_size
        self.noted_layer = _Layer(
            window=window if window is not None and window > -1 else None,
            cap=layer.logit_cap,
            place=pool.translate_loc_from_full_to_swa if windows_alone else lambda slots: slots,
        )
        return forward(self, q, k, v, layer, forward_batch, *args, **kwargs)

    return call


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
        layer: _Layer = self.noted_layer
        lengths = seq_lens.tolist()
        together = len(lengths) * max(lengths, default=0) <= _WASTE * sum(lengths)
        step = len(lengths) if together else 1
        for start in range(0, len(lengths), step or 1):
            of = slice(start, start + step)
            longest = max(1, *lengths[of])
            places = torch.arange(longest)
            tokens = req_to_token[req_pool_indices[of], :longest]
            seen = places < seq_lens[of, None]
            if layer.window is not None:
                seen &= places >= seq_lens[of, None] - 1 - layer.window
            # What is not seen is read from the request's own last token, never from another request's.
            last = tokens.gather(1, (seq_lens[of, None].long() - 1).clamp(min=0))
            keys, values = (
                _read(cache, layer.place(torch.where(seen, tokens, last)), query.dtype) for cache in (k_cache, v_cache)
            )
            # The heads that share a key are queries of it.
            grouped = query[of].unflatten(1, (keys.shape[1], -1))
            found = _attend(grouped, keys, values, seen[:, None, None], options.get("scaling"), layer.cap)
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
        layer: _Layer = self.noted_layer
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
            first = 0 if layer.window is None else max(0, prefix - layer.window)  # what no query sees is not read
            tokens = layer.place(req_to_token[request, None, first:length])
            keys, values = (_read(cache, tokens, query.dtype) for cache in (k_cache, v_cache))
            seen = None  # all that is not later
            if prefix or layer.window is not None:
                at, places = torch.arange(prefix, length)[:, None], torch.arange(first, length)
                seen = places <= at
                if layer.window is not None:
                    seen &= places >= at - layer.window
            found = _attend(query[of].transpose(0, 1)[None], keys, values, seen, options.get("scaling"), layer.cap)
            output[of] = found[0].transpose(0, 1)
        return output

    return call


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    seen: torch.Tensor | None,
    scale: float | None,
    cap: float,
) -> torch.Tensor:
    """Attend: softmax of the scaled scores of what is seen, times the values.

    :param query: [requests, heads, queries, head size]; keys and values may have fewer heads, each for several of it.
    :param seen: which keys a query sees; None for those that are not later than it, with as many keys as queries.
    :param cap: the soft cap of the scores, 0 for none (Gemma 2, arXiv:2408.00118, section 2).
    :returns: [requests, heads, queries, size of a value].
    """
    heads, of_keys = query.shape[1], keys.shape[1]
    if not cap:
        return scaled_dot_product_attention(
            query, keys, values, attn_mask=seen, is_causal=seen is None, scale=scale, enable_gqa=heads != of_keys
        )
    keys, values = (each.repeat_interleave(heads // of_keys, dim=1) for each in (keys, values))
    scores = torch.matmul(query, keys.transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if seen is None:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    scores = (cap * torch.tanh(scores / cap)).masked_fill(~seen, -torch.inf)
    return torch.matmul(scores.softmax(dim=-1), values)


def _read(cache: torch.Tensor, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Read keys or values of requests from the cache.

    :param cache: [slots, heads, head size].
    :param tokens: the slots, [requests, tokens].
    :returns: [requests, heads, tokens, head size] of ``dtype``.
    """
    found = cache.index_select(0, tokens.flatten()).unflatten(0, tokens.shape)
    return found.transpose(1, 2).to(dtype)
