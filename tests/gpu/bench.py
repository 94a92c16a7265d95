"""Measure on CUDA GPUs, side by side; the report is Markdown.

    python -m gpu.bench [PART ...] [-- arguments of the servers]

with the folders `ci` and `tests` on PYTHONPATH. Parts: layers, overhead, transformers, drafts, tiles, scale; all by
default. `scale` takes all GPUs, the others one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import sglang
import torch

from gpu.bench_layers import bench_layers
from gpu.bench_models import bench_drafts, bench_overhead, bench_transformers, draft_models, realistic_models
from gpu.bench_scale import bench_scale
from gpu.bench_tiles import bench_tiles
from gpu.servers import servers

MODELS = {"overhead": bench_overhead, "transformers": bench_transformers, "drafts": bench_drafts}
PARTS = ("layers", *MODELS, "tiles", "scale")


def main() -> None:
    """Run the named parts, or all."""
    parser = argparse.ArgumentParser(description="Measure on CUDA GPUs.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    words = [*sys.argv[1:], "--"]
    own, flags = words[: words.index("--")], words[words.index("--") + 1 : -1]
    parts = parser.parse_args(own).parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: known are {', '.join(PARTS)}")
    print(f"sglang {sglang.__version__}, torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
    if "layers" in parts:
        bench_layers()
    with tempfile.TemporaryDirectory() as name:
        wanted = realistic_models(Path(name)) if {"overhead", "transformers"} & set(parts) else {}
        wanted |= draft_models() if "drafts" in parts else {}
        if wanted:
            with servers(wanted, Path(name), flags) as running:
                for part, bench in MODELS.items():
                    if part in parts:
                        bench(running)
        if "tiles" in parts:
            bench_tiles(Path(name) / "tiles", flags)
        if "scale" in parts:
            bench_scale(Path(name) / "scale", flags)


if __name__ == "__main__":
    main()
