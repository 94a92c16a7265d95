"""Qwen3-Next-80B's own sizes with dummy weights: what the extensions cost at the size that people serve."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from models.qwen3_next_ext.case import DECISIONS
from overlay_tools.engines.server import Server
from reference.cases import Config
from reference.checkpoints import write_config

from gpu.bench_models import ARGUMENTS, AT_ONCE, LONG, decode_step, prefill
from gpu.servers import Wanted, servers
from gpu.timing import figure, in_turns, ratios, table

EVERYTHING: Config = DECISIONS.derived["extensions on"]
ROUTER = ("scoring_func", "n_group", "topk_group")
BASE, ON, ON_BUT = "Qwen3-Next", "Ext, all on", "Ext, all on but the router"
# The random weights of a router send tokens elsewhere than another one's do: its cost shows without it.
MODELS: Mapping[str, Config] = {
    BASE: DECISIONS.base,
    ON: EVERYTHING,
    ON_BUT: {key: value for key, value in EVERYTHING.items() if key not in ROUTER},
}
LAYER = 3 * DECISIONS.base["num_experts"] * DECISIONS.base["moe_intermediate_size"] * DECISIONS.base["hidden_size"] * 2
BESIDE = 10 * 2**30  # bytes of a server beside its layers, at most
SECONDS = 100  # of measuring a row, at most
SURE = 0.005  # a ratio is known when half of its interval is less


def bench_scale(folder: Path, flags: Sequence[str]) -> None:
    """Compare the base with Ext, side by side; each on GPUs of its own where there are enough, else with fewer layers.

    Parameters: `folder`, for checkpoints and logs; `flags`, further arguments of the servers.
    """
    gpus = torch.cuda.device_count()
    ranks = min(gpus, 2)
    places = gpus // ranks
    if places == 1:
        _compare(folder, [ON, ON_BUT], ranks, [0, 0, 0], flags)
        return
    for number, other in enumerate((ON, ON_BUT)):
        _compare(folder / str(number), [other], ranks, [0, ranks], flags)


def _compare(folder: Path, others: Sequence[str], ranks: int, places: Sequence[int], flags: Sequence[str]) -> None:
    shared = max(places.count(place) for place in places)
    memory = 0.9 * torch.cuda.get_device_properties(0).total_memory / shared - BESIDE
    layers = min(DECISIONS.base["num_hidden_layers"], int(memory * ranks / LAYER) // 4 * 4)
    names = [BASE, *others]
    wanted = {
        name: Wanted(
            _write(folder / str(number), MODELS[name], layers),
            {
                "load_format": "dummy",
                "tp_size": ranks,
                "base_gpu_id": place,
                **ARGUMENTS,
            },
        )
        for number, (name, place) in enumerate(zip(names, places, strict=True))
    }
    with servers(wanted, folder, flags) as running:
        title = f"Qwen3-Next-80B's sizes, {layers} of its 48 layers, TP={ranks}, {shared} servers on a GPU"
        heads = ["", *names, *(f"{other} / base" for other in others), "rounds"]
        runs: list[tuple[str, Callable[[Server], float], str]] = [
            *((f"decode step, batch {n}, ms", partial(decode_step, batch=n), ".3f") for n in (64, 16, 1)),
            (f"prefill, {AT_ONCE} prompts of {LONG}, tokens a second", prefill, ".0f"),
        ]
        table(title, heads, (_row(running, names, *run) for run in runs))


def _row(
    running: Mapping[str, Server], names: Sequence[str], what: str, run: Callable[[Server], float], form: str
) -> list[str]:
    """Measure in rounds until all ratios are known, or the time is over."""
    times: dict[str, list[float]] = {name: [] for name in names}
    ends = time.monotonic() + SECONDS
    while True:
        for name, taken in in_turns({name: partial(run, running[name]) for name in names}, 5).items():
            times[name] += taken
        to_base = [ratios(times[name], times[names[0]]) for name in names[1:]]
        if time.monotonic() > ends or all(high - low < 2 * SURE for low, high in map(interval, to_base)):
            break
    shown = [
        f"{statistics.median(of):.4f} ({low:.4f} to {high:.4f})"
        for of, (low, high) in zip(to_base, map(interval, to_base), strict=True)
    ]
    return [what, *(figure(taken, form) for taken in times.values()), *shown, str(len(times[names[0]]))]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Give the interval in which the median of all such values is, with a probability of 95% at least.

    By order statistics: the number of values below the median has a binomial distribution.
    """
    ordered, middle, half = sorted(values), len(values) / 2, 0.98 * math.sqrt(len(values))
    return ordered[max(0, math.floor(middle - half))], ordered[min(len(ordered) - 1, math.ceil(middle + half))]


def _write(folder: Path, config: Config, layers: int) -> Path:
    """Write the configuration of a model with fewer layers; a part of its attention has no positions, if it may."""
    changes: dict[str, object] = {"num_hidden_layers": layers, "vocab_size": 151_936}
    if "nope_layers" in config:
        changes["nope_layers"] = [layer for layer in config["nope_layers"] if layer < layers]
    return write_config(folder, {**config, **changes})
