"""CPU reference build of SGLang's kernel package, in plain PyTorch.

It serves what stands in ``proven`` (prefix cache, chunked prefill, NEXTN with a chain of drafts) on a machine without a
GPU: correct first, fast enough to test with. The operators are in ``gated_delta``, ``conv``, ``gating``,
``speculative`` and ``state_pool``. ``fixups`` lists, and applies when ``SGLANG_USE_CPU_ENGINE=1``, what upstream's
own modules need besides. ``convert_weight_packed`` is left out on purpose: by it upstream recognises a host with AMX,
whose far larger set of fused operators this package does not have.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

_CPU_ENGINE = os.environ.get("SGLANG_USE_CPU_ENGINE") == "1"

if torch.cuda.is_available() and not _CPU_ENGINE:
    raise ImportError(
        "this sgl_kernel is the CPU reference build, and this host has a CUDA device. Reinstall upstream's kernels: "
        "pip install --force-reinstall --no-deps 'sglang-kernel' at the version that your sglang requires without "
        "'+cpu' ('sgl-kernel' up to sglang 0.5.9); or set SGLANG_USE_CPU_ENGINE=1 to serve from the CPU."
    )

from sgl_kernel import fixups, gated_delta, gating  # noqa: E402
from sgl_kernel.speculative import (  # noqa: E402, F401
    assign_draft_cache_locs_contiguous_cpu,
    assign_extend_cache_locs_cpu,
    assign_req_to_token_pool_cpu,
    build_tree_kernel_efficient_cpu,
    copy_all_layer_kv_cache_cpu,
    fill_accept_out_cache_loc_cpu,
    fill_bonus_tokens_cpu,
    rotate_input_ids_cpu,
    verify_tree_greedy_cpu,
)
from sgl_kernel.unimplemented import SubmoduleFinder, unimplemented  # noqa: E402

# Upstream guards these imports and has a fallback, so they must stay missing.
_OPTIONAL = frozenset({"awq_dequantize", "gptq_gemm", "gptq_shuffle", "rmsnorm", "metal"})


def __getattr__(name: str):
    if name.startswith("__") or name in _OPTIONAL:
        raise AttributeError(f"module 'sgl_kernel' has no attribute {name!r}; it has no CPU implementation")
    return unimplemented(f"sgl_kernel.{name}")


def _version() -> str:
    for distribution in ("sglang-kernel", "sgl-kernel"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            pass
    return "0+cpu"  # run from a source tree


__version__ = _version()

# Upstream calls these three as torch.ops.sgl_kernel.<name>; plain attributes serve as well as registered operators.
for _op in (
    gated_delta.fused_gdn_gating_cpu,
    gated_delta.fused_sigmoid_gating_delta_rule_update_cpu,
    gating.fused_rmsnorm_gated_cpu,
):
    setattr(torch.ops.sgl_kernel, _op.__name__, _op)

# Upstream to 0.5.15 calls the twins of these two by their CUDA names once fixups lets it.
build_tree_kernel_efficient = build_tree_kernel_efficient_cpu
verify_tree_greedy = verify_tree_greedy_cpu

sys.meta_path.append(SubmoduleFinder)
if _CPU_ENGINE:
    fixups.install()
