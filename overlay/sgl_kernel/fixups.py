"""What upstream's own modules need changed to serve from a plain CPU: one table, and the code that applies it.

Upstream's modules assume a GPU, or a CPU with AMX, in a few places besides its kernels. Each row of ``FIXUPS`` names
one such place, the releases that have it, and why; it is applied when the module is first imported, in every process
(all of them import ``sgl_kernel`` early), only if ``SGLANG_USE_CPU_ENGINE=1``, and nothing on disk is changed. A row
whose place is gone from a release that it claims is a :class:`FixupError`, never a silent no-op.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.utils._device
from packaging.specifiers import SpecifierSet

from sgl_kernel import (
    conv,
    gated_delta,
    gating,
    linear,
    native_attention,
    native_draft,
    proven,
    speculative,
    state_pool,
)
from sgl_kernel.import_hook import ImportHook

ENVIRONMENT = {
    # Compiling for a CPU takes far longer than these tests run, and needs a C++ compiler.
    "TORCHDYNAMO_DISABLE": "1",
    # Upstream's default, bfloat16, would round the convolution's inputs that the next prefill or decode continues from.
    "SGLANG_MAMBA_CONV_DTYPE": "float32",
}
"""Environment variables that get these values unless set already; child processes inherit them."""


class FixupError(RuntimeError):
    """A row of the table does not fit the installed release.

    :param fixup: the row.
    :param problem: what is wrong with it.
    """

    def __init__(self, fixup: Fixup, problem: str):
        super().__init__(
            f"sgl_kernel fix-up of {fixup.module}:{fixup.symbol} (sglang{fixup.releases or ', any release'}): {problem}"
        )
        self.fixup = fixup


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixup:
    """One change to one upstream module; exactly one of ``replace`` and ``edit`` is set.

    :param module: full name.
    :param symbol: what is changed there: ``name`` or ``Class.name``.
    :param releases: PEP 440 specifier of the sglang releases that need it; empty means all.
    :param why: what goes wrong without.
    :param replace: given the symbol's value, returns the new one.
    :param edit: old and new source text; the old one must occur exactly once in the module.
    """

    module: str
    symbol: str
    releases: str
    why: str
    replace: Callable[[Any], Any] | None = None
    edit: tuple[str, str] | None = None

    def applies_to(self, release: str) -> bool:
        """Say whether the row names that release of sglang."""
        return SpecifierSet(self.releases).contains(release, prereleases=True)

    def edit_source(self, source: str) -> str:
        """Return the edited source.

        :raises FixupError: if the old text does not occur exactly once.
        """
        old, new = self.edit  # type: ignore[misc]  # only rows that have one are asked
        if source.count(old) != 1:
            raise FixupError(self, f"{old!r} occurs {source.count(old)} times, not once")
        return source.replace(old, new)

    def finish(self, module: ModuleType) -> None:
        """Replace the symbol in the imported module.

        :raises FixupError: if it is not there.
        """
        *path, name = self.symbol.split(".")
        try:
            owner = functools.reduce(getattr, path, module)
            original = getattr(owner, name)
        except AttributeError:
            raise FixupError(self, "no such symbol") from None
        setattr(owner, name, self.replace(original))  # type: ignore[misc]  # only rows that have one are asked


def _with(new: Any) -> Callable[[Any], Any]:
    return lambda original: new


def _kernel(function: Callable[..., Any]) -> Callable[[Any], Any]:
    """Replace a Triton kernel, which is launched as ``kernel[grid](*args)``, by a function."""

    class Launcher:
        def __getitem__(self, grid: object) -> Callable[..., Any]:
            return function

    return _with(Launcher())


def _with_globals(**names: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a function, while it runs, see other values under these names of its module."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            seen = original.__globals__
            saved = {name: seen[name] for name in names}
            seen.update(names)
            try:
                return original(*args, **kwargs)
            finally:
                seen.update(saved)

        return call

    return wrap


def _if_extra_buffer(
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Apply a wrapper to a method of ServerArgs only when the caller asked for ``extra_buffer``."""

    def choose(original: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = wrap(original)

        @functools.wraps(original)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return (wrapped if self.enable_mamba_extra_buffer() else original)(self, *args, **kwargs)

        return call

    return choose


def _true() -> bool:
    return True


def _extend_cache_locs(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    batch_size: int,
    draft_token_num: int,
    device: Any,
) -> torch.Tensor:
    out = torch.empty(batch_size * draft_token_num, dtype=torch.int64)
    speculative.assign_extend_cache_locs_cpu(
        req_pool_indices, req_to_token, start_offset, end_offset, out, req_to_token.shape[1]
    )
    return out


def _draft_without_linear(init_forward_metadata: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(init_forward_metadata)
    def call(self: Any, forward_batch: Any) -> None:
        if forward_batch.forward_mode.name.startswith("DRAFT_EXTEND"):
            self.full_attn_backend.init_forward_metadata(forward_batch)
        else:
            init_forward_metadata(self, forward_batch)

    return call


def _apply_vocab_mask(logits: torch.Tensor, vocab_mask: torch.Tensor) -> None:
    import xgrammar

    xgrammar.apply_token_bitmask_inplace(logits, vocab_mask)


def _without_pinning(factory: Callable[..., Any]) -> Callable[..., Any]:
    """Let a tensor factory ignore ``pin_memory=True`` and take ``device="cuda"`` for the CPU."""

    @functools.wraps(factory)
    def call(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.get("device")) == "cuda":
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return call


def _cpu_by_default(get_device_module: Callable[..., ModuleType]) -> Callable[..., ModuleType]:
    @functools.wraps(get_device_module)
    def call(device: Any = None) -> ModuleType:
        return get_device_module("cpu" if device is None else device)

    return call


def _no_nccl(self: object, so_file: str | None = None) -> None:
    raise OSError("no NCCL on a CPU")  # upstream goes on without, as where the library is absent


def _replace(releases: str, module: str, symbol: str, why: str, replace: Callable[[Any], Any]) -> Fixup:
    return Fixup(module=module, symbol=symbol, releases=releases, why=why, replace=replace)


def _edit(releases: str, module: str, symbol: str, why: str, old: str, new: str) -> Fixup:
    return Fixup(module=module, symbol=symbol, releases=releases, why=why, edit=(old, new))


_ATTENTION = "sglang.srt.layers.attention"
_HYBRID = f"{_ATTENTION}.hybrid_linear_attn_backend"
_SPEC = "sglang.srt.speculative"
_OPS = "sglang.kernels.ops"
_SCATTER, _OLD_SCATTER = f"{_OPS}.mamba.mamba_state_scatter_triton", f"{_ATTENTION}.mamba.mamba_state_scatter_triton"
_CONV = f"{_ATTENTION}.mamba.causal_conv1d_triton"
_LOCS = f"{_SPEC}.triton_ops.cache_locs"

_NO_CPU = "has no CPU branch and launches Triton"
_NO_AMX = "takes its CPU branch only with AMX, else launches Triton"
_STATES = "copies states between slots with Triton"
_LAYER = "takes no notice of a layer's soft cap and window, nor of a pool that holds windows alone"
_FORMS = 'AttentionBackendRegistry.register("triton", handle_attention_triton)'
_ASSERT = "extra_buffer is asserted to need a GPU; this package returns the chunk states that it needs"

FIXUPS: tuple[Fixup, ...] = (
    # Models and options that are not known to be right.
    _replace("", "sglang.srt.model_loader.utils", "get_model_architecture", "serves what it answers wrongly on a CPU",
             proven.refuse_model),
    _replace("", "sglang.srt.managers.scheduler", "Scheduler.__init__", "serves what it answers wrongly on a CPU",
             proven.refuse_options),
    # Import.
    _edit("<0.5.8", "sglang.srt.layers.activation", "SiluAndMul", "without AMX, SiluAndMul is imported from vllm",
          "(_is_cpu and _is_cpu_amx_available)", "_is_cpu"),
    _edit("<0.5.8", "sglang.srt.layers.layernorm", "RMSNorm", "without AMX, RMSNorm is imported from vllm",
          "(_is_cpu and _is_cpu_amx_available)", "_is_cpu"),
    _edit("<0.5.8", "sglang.srt.layers.rotary_embedding", "RotaryEmbedding", "without AMX, imports a kernel from vllm",
          "not (_is_cpu and _is_cpu_amx_available)", "not _is_cpu"),
    _edit(">=0.5.9,<0.5.10", _HYBRID, "cpu_has_amx_support", "asserts AMX when imported",
          "cpu_has_amx_support()", "True"),
    # Distribution.
    _replace("", "sglang.srt.distributed.device_communicators.pynccl_wrapper", "NCCLLibrary.__init__",
             "a torch built for CUDA brings NCCL, and ranks without a GPU would set it up", _with(_no_nccl)),
    # Server arguments.
    _replace("<0.5.9", "sglang.srt.server_args", "ServerArgs._handle_model_specific_adjustments", _ASSERT,
             _if_extra_buffer(_with_globals(is_cuda=_true))),
    _replace(">=0.5.9,<0.5.14", "sglang.srt.server_args", "ServerArgs._handle_mamba_radix_cache", _ASSERT,
             _if_extra_buffer(_with_globals(is_cuda=_true))),
    _replace(">=0.5.14,<0.5.19", "sglang.srt.server_args", "ServerArgs._validate_mamba_extra_buffer", _ASSERT,
             _with_globals(is_cuda=_true)),
    _replace(">=0.5.19,<0.5.22", "sglang.srt.arg_groups.mamba_hook", "validate_mamba_extra_buffer", _ASSERT,
             _with_globals(get_platform=lambda: SimpleNamespace(is_cuda=True))),
    _replace(">=0.5.22", "sglang.srt.arg_groups.mamba_hook", "_platform_supports_mamba_cache_extra_buffer", _ASSERT,
             _with(_true)),
    # Qwen3-Next.
    _edit("<0.5.8", "sglang.srt.models.qwen3_next", "Qwen3GatedDeltaNet", "uses a CUDA stream that a CPU has not",
          "if seq_len < DUAL_STREAM_TOKEN_THRESHOLD:",
          "if seq_len < DUAL_STREAM_TOKEN_THRESHOLD and self.alt_stream is not None:"),
    _edit("<0.5.9", "sglang.srt.models.qwen3_next", "Qwen3GatedDeltaNet", f"decode {_NO_CPU}",
          "and is_cuda_graph:", "and False:"),
    _replace("<0.5.9", f"{_ATTENTION}.fla.layernorm_gated", "RMSNorm.forward", _NO_CPU,
             _with(gating.rmsnorm_gated_forward)),
    _replace(">=0.5.9,<0.5.16", f"{_ATTENTION}.fla.layernorm_gated", "_use_cpu", _NO_AMX, _with(True)),
    _replace(">=0.5.16", f"{_OPS}.attention.fla.layernorm_gated", "_use_cpu", _NO_AMX, _with(True)),
    _replace(">=0.5.10,<0.5.11", f"{_ATTENTION}.fla.fused_norm_gate", "FusedRMSNormGated.forward", _NO_CPU,
             _with(gating.fused_rmsnorm_gated_forward)),
    _replace(">=0.5.11,<0.5.16", f"{_ATTENTION}.fla.fused_norm_gate", "_use_cpu", _NO_AMX, _with(True)),
    _replace(">=0.5.16", f"{_OPS}.attention.fla.fused_norm_gate", "_use_cpu", _NO_AMX, _with(True)),
    *(
        _replace(releases, module, "fused_gate_sigmoid_mul_add", _NO_CPU, _with(gating.fused_gate_sigmoid_mul_add))
        for releases, module in (
            (">=0.5.14,<0.5.16", "sglang.srt.layers.elementwise"),
            (">=0.5.16,<0.5.17", f"{_OPS}.layernorm.elementwise"),
            (">=0.5.17", f"{_OPS}.elementwise.elementwise"),
        )
    ),
    _replace(">=0.5.19", f"{_OPS}.elementwise.elementwise", "fused_gate_sigmoid_mul", _NO_CPU,
             _with(gating.fused_gate_sigmoid_mul)),
    # Attention.
    _replace("", f"{_ATTENTION}.torch_native_backend", "TorchNativeAttnBackend._run_sdpa_forward_decode",
             "walks through the requests in each layer", native_attention.decode_at_once),
    _replace("", f"{_ATTENTION}.torch_native_backend", "TorchNativeAttnBackend._run_sdpa_forward_extend",
             "computes what is in the cache already, and drops it", native_attention.extend_what_is_new),
    _replace("", f"{_ATTENTION}.torch_native_backend", "TorchNativeAttnBackend.forward_decode", _LAYER,
             native_attention.note_layer),
    # Latent attention.
    *(
        _edit(releases, module, "AttentionBackendRegistry",
              "where nothing is cached, takes whole keys and values, and then reads the latent ones from the cache",
              _FORMS, f'{_FORMS}\nAttentionBackendRegistry.register("torch_native", _dispatch_mla_subtype)')
        for releases, module in (
            ("<0.5.8", "sglang.srt.models.deepseek_v2"),
            (">=0.5.8", "sglang.srt.models.deepseek_common.attention_backend_handler"),
        )
    ),
    *(
        _edit(releases, module, "get_rope_cpu", "asserts that rotary positions are scaled",
              "    assert rope_scaling is not None\n",
              "    if rope_scaling is None:\n"
              "        return get_rope(head_size, rotary_dim, max_position, base, is_neox_style, None, dtype)\n")
        for releases, module in (
            ("<0.5.10", "sglang.srt.layers.rotary_embedding"),
            (">=0.5.10", "sglang.srt.layers.rotary_embedding.factory"),
        )
    ),
    # Gemma 3.
    _edit(">=0.5.12,<0.5.14", "sglang.srt.models.gemma3_causal", "Gemma3TextModel",
          "asks for the factor of rotary positions that are not scaled",
          'config.rope_parameters["full_attention"]["factor"]',
          'config.rope_parameters["full_attention"].get("factor", 1.0)'),
    # Adapters (LoRA).
    _edit("<0.5.10", "sglang.srt.lora.backend.torch_backend", "TorchNativeLoRABackend.prepare_lora_batch",
          "takes as many groups of requests as there are requests, and fails where two of an adapter stand together",
          "batch_info.weight_indices[:bs].copy_(",
          "batch_info.weight_indices[: len(weight_indices_tensor)].copy_("),
    # Linear attention.
    _replace("<0.5.9", f"{_ATTENTION}.fla.chunk", "chunk_gated_delta_rule", _NO_CPU,
             _with(gated_delta.chunk_gated_delta_rule_cpu)),
    _replace("<0.5.9", f"{_ATTENTION}.fla.fused_sigmoid_gating_recurrent", "fused_sigmoid_gating_delta_rule_update",
             _NO_CPU, _with(gated_delta.fused_sigmoid_gating_delta_rule_update_cpu)),
    _replace("<0.5.10", f"{_ATTENTION}.fla.fused_recurrent", "fused_recurrent_gated_delta_rule_update",
             f"verify {_NO_CPU}", _with(gated_delta.fused_recurrent_gated_delta_rule_update_cpu)),
    _replace("<0.5.9", f"{_ATTENTION}.fla.fused_gdn_gating", "fused_gdn_gating", _NO_CPU,
             _with(gated_delta.fused_gdn_gating_cpu)),
    _replace("<0.5.9", _CONV, "causal_conv1d_fn", _NO_CPU, _with(conv.causal_conv1d_fn_cpu)),
    _replace("<0.5.9", _CONV, "causal_conv1d_update", _NO_CPU, _with(conv.causal_conv1d_update_cpu)),
    _replace("<0.5.9", "sglang.srt.configs.mamba_utils", "CONV_DTYPE", "SGLANG_MAMBA_CONV_DTYPE came with 0.5.9",
             lambda original: getattr(torch, os.environ["SGLANG_MAMBA_CONV_DTYPE"])),
    _edit(">=0.5.9,<0.5.13", _HYBRID, "FLA_CHUNK_SIZE", "extra_buffer uses a name that is imported for GPUs only",
          "\nlogger = ", f"\nFLA_CHUNK_SIZE = {gated_delta.CHUNK_SIZE}; logger = "),
    _replace("<0.5.14", _HYBRID, "track_mamba_states_if_needed", _STATES,
             _with(state_pool.track_mamba_states_if_needed)),
    _replace(">=0.5.14,<0.5.16", _OLD_SCATTER, "track_mamba_states_if_needed", _STATES,
             _with(state_pool.track_mamba_states_if_needed)),
    _replace(">=0.5.16", _SCATTER, "track_mamba_states_if_needed", _STATES,
             _with(state_pool.track_mamba_states_if_needed)),
    _replace(">=0.5.17", _SCATTER, "track_mamba_states_all_layers", _STATES,
             _with(state_pool.track_mamba_states_all_layers)),
    # Speculative decoding.
    _replace(">=0.5.10,<0.5.16", _OLD_SCATTER, "fused_mamba_state_scatter_with_mask", _STATES,
             _with(state_pool.scatter_with_mask)),
    _replace(">=0.5.16", _SCATTER, "fused_mamba_state_scatter_with_mask", _STATES, _with(state_pool.scatter_with_mask)),
    _replace(">=0.5.14,<0.5.16", _OLD_SCATTER, "fused_conv_window_scatter_with_mask", _STATES,
             _with(state_pool.scatter_with_mask)),
    _replace(">=0.5.16", _SCATTER, "fused_conv_window_scatter_with_mask", _STATES, _with(state_pool.scatter_with_mask)),
    _replace(">=0.5.18", _SCATTER, "_conv_multi_eligible", f"for bfloat16, {_STATES} of several layers at once",
             _with(lambda pairs: False)),
    _replace("<0.5.10", _HYBRID, "HybridLinearAttnBackend.init_forward_metadata",
             "prepares linear attention for the draft, which has none, from fields of another batch",
             _draft_without_linear),
    _replace("", f"{_ATTENTION}.torch_native_backend", "TorchNativeAttnBackend.forward_extend",
             f"takes drafts to verify for an extend without prefix, and {_LAYER}",
             lambda original: native_draft.describe_speculative_extend(native_attention.note_layer(original))),
    _replace("", f"{_SPEC}.draft_utils", "DraftBackendFactory._create_backend", "does not know torch_native",
             native_draft.offer_torch_native),
    _replace("", "sglang.srt.managers.tokenizer_manager", "TokenizerManager._create_tokenized_object",
             "answers greedily where a request is to be sampled, or fails", native_draft.refuse_sampling),
    _edit("<0.5.16", f"{_SPEC}.eagle_utils", "_is_cuda", "without a GPU the drafts are neither laid out nor verified",
          "_is_cuda = is_cuda()", "_is_cuda = True"),
    *(
        _replace(releases, module, symbol, _NO_CPU, _kernel(function))
        for releases, module, symbol, function in (
            ("<0.5.13", f"{_SPEC}.spec_utils", "assign_req_to_token_pool", speculative.assign_req_to_token_pool_cpu),
            ("<0.5.13", f"{_SPEC}.spec_utils", "assign_draft_cache_locs", speculative.assign_draft_cache_locs_cpu),
            ("<0.5.13", f"{_SPEC}.spec_utils", "create_extend_after_decode_spec_info",
             speculative.create_extend_after_decode_spec_info_cpu),
            ("<0.5.13", f"{_SPEC}.eagle_info_v2", "assign_draft_cache_locs_page_size_1",
             speculative.assign_draft_cache_locs_contiguous_cpu),
            ("<0.5.13", f"{_SPEC}.eagle_info_v2", "assign_extend_cache_locs", speculative.assign_extend_cache_locs_cpu),
            ("<0.5.13", f"{_SPEC}.eagle_info_v2", "fill_accepted_out_cache_loc",
             speculative.fill_accept_out_cache_loc_cpu),
            ("<0.5.12", f"{_SPEC}.eagle_info_v2", "fill_new_verified_id", speculative.fill_bonus_tokens_cpu),
            (">=0.5.12,<0.5.13", f"{_SPEC}.eagle_info_v2", "fill_bonus_tokens", speculative.fill_bonus_tokens_cpu),
            ("<0.5.13", "sglang.srt.mem_cache.memory_pool", "copy_all_layer_kv_cache_tiled",
             speculative.copy_all_layer_kv_cache_tiled_cpu),
            (">=0.5.13,<0.5.16", "sglang.srt.mem_cache.triton_ops.cache_move", "copy_all_layer_kv_cache_tiled",
             speculative.copy_all_layer_kv_cache_tiled_cpu),
            (">=0.5.13,<0.5.16", _LOCS, "assign_req_to_token_pool", speculative.assign_req_to_token_pool_cpu),
            (">=0.5.13,<0.5.16", _LOCS, "assign_draft_cache_locs_contiguous",
             speculative.assign_draft_cache_locs_contiguous_cpu),
            (">=0.5.13,<0.5.16", _LOCS, "assign_extend_cache_locs", speculative.assign_extend_cache_locs_cpu),
            (">=0.5.13,<0.5.16", f"{_SPEC}.triton_ops.eagle", "fill_bonus_tokens", speculative.fill_bonus_tokens_cpu),
            (">=0.5.13,<0.5.16", f"{_SPEC}.triton_ops.eagle", "fill_accept_out_cache_loc",
             speculative.fill_accept_out_cache_loc_cpu),
        )
    ),
    _replace("<0.5.13", f"{_SPEC}.eagle_info_v2", "assign_extend_cache_locs_func", "returns None without a GPU",
             _with(_extend_cache_locs)),
    _replace(">=0.5.13,<0.5.16", _LOCS, "assign_extend_cache_locs_func", "returns None without a GPU",
             _with(_extend_cache_locs)),
    _replace(">=0.5.13,<0.5.16", f"{_SPEC}.triton_ops.gather_spec_extras", "gather_spec_extras", _NO_CPU,
             _with(speculative.gather_spec_extras_cpu)),
    # Structured output.
    _replace(">=0.5.8,<0.5.18", "sglang.srt.constrained.xgrammar_backend", "XGrammarGrammar.apply_vocab_mask",
             "refuses a CPU", _with(lambda self, logits, vocab_mask: _apply_vocab_mask(logits, vocab_mask))),
    _replace(">=0.5.12", "sglang.srt.constrained.xgrammar_backend", "XGrammarGrammarBackend.apply_vocab_mask",
             "refuses a CPU", _with(staticmethod(_apply_vocab_mask))),
)  # fmt: skip
"""The changes to upstream's modules."""

TORCH_FIXUPS: tuple[Fixup, ...] = (
    *(
        _replace("", "torch", factory, "a few callers ask for pinned memory, or for CUDA, without a guard",
                 _without_pinning)
        for factory in ("tensor", "empty", "zeros", "full")
    ),
    _replace("", "torch", "Tensor.pin_memory", "needs a CUDA driver", _with(lambda self, *args, **kwargs: self)),
    _replace("", "torch", "Tensor.record_stream", "needs a CUDA driver", _with(lambda self, *args, **kwargs: None)),
    _replace("", "torch.cuda", "synchronize", "needs a CUDA driver", _with(lambda *args, **kwargs: None)),
    _replace("", "torch.nn.functional", "linear", "takes MKL, slow on what is not Intel's", linear.linear_by_onednn),
    _replace("", "torch", "matmul", "takes MKL, slow on what is not Intel's", linear.matmul_by_onednn),
    _replace("", "torch", "get_device_module", "since torch 2.12 a CUDA build answers torch.cuda without a device",
             _cpu_by_default),
)  # fmt: skip
"""The changes to torch, applied only where CUDA does not work: what it needs there, and what makes it faster."""


def install() -> None:
    """Set the environment and apply both tables, now or when the modules are imported.

    :raises FixupError: if a row does not fit; for rows of modules imported later, at their import.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "torch._dynamo" in sys.modules and os.environ["TORCHDYNAMO_DISABLE"] == "1":
        torch._dynamo.config.disable = True  # it has read the environment already
    if not torch.cuda.is_available():
        # `with torch.device(...)` knows the factories by what they are when it first lists them. It must list them
        # unwrapped, or it lets the wrapped ones pass: transformers would then get tensors without content.
        torch.utils._device._device_constructors()
        for fixup in TORCH_FIXUPS:
            fixup.finish(sys.modules[fixup.module])
    try:
        release = version("sglang")
    except PackageNotFoundError:
        return  # the operators alone
    by_module: dict[str, list[Fixup]] = {}
    for fixup in FIXUPS:
        if fixup.applies_to(release):
            _require_module(fixup)
            if fixup.edit and fixup.module in sys.modules:
                raise FixupError(fixup, "imported before sgl_kernel, too late to be edited")
            by_module.setdefault(fixup.module, []).append(fixup)

    def edit(name: str, source: str) -> str:
        for fixup in by_module[name]:
            source = fixup.edit_source(source) if fixup.edit else source
        return source

    def finish(module: ModuleType) -> None:
        for fixup in by_module[module.__name__]:
            if fixup.replace:
                fixup.finish(module)

    ImportHook(by_module, edit, finish).install()


def _require_module(fixup: Fixup) -> None:
    root = Path(importlib.util.find_spec("sglang").submodule_search_locations[0])  # type: ignore[index, union-attr]
    if not root.joinpath(*fixup.module.split(".")[1:]).with_suffix(".py").is_file():
        raise FixupError(fixup, "no such module")
