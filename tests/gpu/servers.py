"""Servers on one GPU, several at a time: each takes a minute or two to start, so they start side by side."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from overlay_tools.engines import engine_config
from overlay_tools.engines.server import Server
from sglang.srt.server_args import ServerArgs

# Sampling in PyTorch: the same on every host, whatever kernels it can build.
ARGS: dict[str, object] = {
    "dtype": "bfloat16",
    "attention_backend": "triton",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "mem_fraction_static": 0.85,  # never taken: all pools are given their sizes, so that servers fit beside each other
    "random_seed": 1,
    "sleep_on_idle": True,
    "skip_server_warmup": True,
}
# Servers that start side by side take memory on one GPU before the other: upstream would refuse such a pair of ranks.
ENVIRONMENT = {"SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK": "0"}
KNOWN = inspect.signature(ServerArgs).parameters  # the arguments that this release has


@dataclass(frozen=True, slots=True)
class Wanted:
    """A server to start: its checkpoint, and arguments and environment beside ARGS and ENVIRONMENT."""

    model: Path
    arguments: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


def graphs(most: int) -> dict[str, object]:
    """Give the arguments for CUDA graphs of up to so many requests, by the name that this release has for it."""
    name = "cuda_graph_max_bs_decode"
    return {name if name in KNOWN else "cuda_graph_max_bs": most}


@contextmanager
def servers(wanted: Mapping[str, Wanted], logs: Path, flags: Sequence[str] = ()) -> Iterator[dict[str, Server]]:
    """Start servers side by side and stop them all at the end; their output goes to files in `logs`.

    Parameters: `flags`, further arguments of all of them.
    Raises ServeError, with a server's own last lines, if one does not come up.
    """
    described = [
        _describe(asked, logs / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.log", flags) for name, asked in wanted.items()
    ]
    with ExitStack() as stack, ThreadPoolExecutor(max_workers=len(wanted)) as pool:
        yield dict(zip(wanted, pool.map(stack.enter_context, described), strict=True))


def _describe(asked: Wanted, log: Path, flags: Sequence[str]) -> Server:
    arguments = {key: value for key, value in ARGS.items() if key in KNOWN} | dict(asked.arguments)
    flags = [*engine_config.flags(arguments), *flags]
    return Server(Path(sys.executable), asked.model, flags, env={**ENVIRONMENT, **asked.environment}, log=log, grace=0)
