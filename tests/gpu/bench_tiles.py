"""A server with tiles that `tune` finds for its experts, beside one with those that upstream takes by itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from models.qwen3_next.case import CONFIG as QWEN3_NEXT
from overlay_tools.engines.server import Server
from overlay_tools.proving.tune.bench import open_processes
from overlay_tools.proving.tune.search import dump, search
from overlay_tools.proving.tune.shape import shape_of
from overlay_tools.proving.tune.tiles import points
from reference.checkpoints import changed, write_config

from gpu.bench_models import ARGUMENTS, AT_ONCE, LONG, REALISTIC, decode_step, prefill
from gpu.servers import Wanted, servers
from gpu.timing import figure, in_turns, ratios, table

BATCHES = (1, 2, 4, 8, 16, 24, 32, 64, 256)
DEFAULT, TUNED = "upstream's tiles", "tuned"
# Triton's kernel is what takes tiles: upstream takes another one by itself where it has one for the GPU.
RUNNER = "triton"


def bench_tiles(folder: Path, flags: Sequence[str]) -> None:
    """Tune the experts of the realistic sizes, and compare two servers of them, with dummy weights.

    Parameters: `folder`, for the checkpoint, the file of tiles and logs; `flags`, further arguments of the servers.
    """
    model = write_config(folder / "model", changed(QWEN3_NEXT, REALISTIC))
    tiles = _tune(model, folder / "tuning")
    arguments: dict[str, object] = {**ARGUMENTS, "load_format": "dummy", "moe_runner_backend": RUNNER}
    wanted = {
        DEFAULT: Wanted(model, arguments),
        TUNED: Wanted(model, arguments, {"SGLANG_MOE_CONFIG_DIR": str(tiles)}),
    }
    with servers(wanted, folder, flags) as running:
        for name, server in running.items():
            taken = "Using MoE kernel config from" in server.log.read_text(encoding="utf-8", errors="replace")
            assert taken == (name == TUNED), f"{name}: see {server.log}"

        def row(name: str, run: Callable[[Server], float], form: str, rounds: int) -> list[str]:
            found = in_turns({key: partial(run, server) for key, server in running.items()}, rounds)
            over, under = (DEFAULT, TUNED) if run is not prefill else (TUNED, DEFAULT)
            faster = figure(ratios(found[over], found[under]))
            return [name, *(figure(values, form) for values in found.values()), faster]

        rows: list[tuple[str, Callable[[Server], float], str, int]] = [
            *(
                (f"decode step, batch {batch}, ms", partial(decode_step, batch=batch), ".3f", rounds)
                for batch, rounds in ((16, 9), (64, 7), (1, 9))
            ),
            (f"prefill, {AT_ONCE} prompts of {LONG}, tokens a second", prefill, ".0f", 5),
        ]
        table("Tuned tiles", ["", *running, "times faster"], (row(*each) for each in rows))


def _tune(model: Path, folder: Path) -> Path:
    """Do what `tune --out` does for a checkpoint; return the folder for upstream's variable."""
    folder.mkdir()
    flags = ["--skip-tokenizer-init", "--moe-runner-backend", RUNNER, "--dtype", "bfloat16"]
    with open_processes(Path(sys.executable), folder, model, flags) as processes:
        shape = shape_of(processes.facts, str(model))
        described = processes.open(shape, [])
        grid = points(BATCHES, described.defaults, LONG * AT_ONCE)
        choices = search(processes, shape, grid, described.shared_memory)
    print(f"\n{shape}", flush=True)
    table(
        "Its kernel",
        ["tokens", "upstream's tiles, µs", "tuned, µs", "times faster"],
        ([str(c.point.tokens), f"{c.default:.1f}", f"{c.tuned:.1f}", f"{c.faster:.2f}"] for c in choices),
    )
    tiles = folder / "tiles"  # `folder` itself has a copy of upstream's files, for the processes
    path = tiles / "configs" / described.file
    path.parent.mkdir(parents=True)
    path.write_text(dump(choices), encoding="utf-8")
    return tiles
