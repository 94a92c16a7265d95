"""Measure on one CUDA GPU, side by side; the report is Markdown.

    python -m gpu.bench [PART ...]

with the folders `ci` and `tests` on PYTHONPATH. Parts: layers, overhead, transformers, drafts; all of them by default.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import sglang
import torch

from gpu.bench_layers import bench_layers
from gpu.bench_models import bench_drafts, bench_overhead, bench_transformers, draft_models, realistic_models
from gpu.servers import servers

MODELS = {"overhead": bench_overhead, "transformers": bench_transformers, "drafts": bench_drafts}
PARTS = ("layers", *MODELS)


def main() -> None:
    """Run the named parts, or all."""
    parser = argparse.ArgumentParser(description="Measure on one CUDA GPU.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parts = parser.parse_args().parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: known are {', '.join(PARTS)}")
    print(f"sglang {sglang.__version__}, torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
    if "layers" in parts:
        bench_layers()
    with tempfile.TemporaryDirectory() as name:
        wanted = realistic_models(Path(name)) if {"overhead", "transformers"} & set(parts) else {}
        wanted |= draft_models() if "drafts" in parts else {}
        if wanted:
            with servers(wanted, Path(name)) as running:
                for part, bench in MODELS.items():
                    if part in parts:
                        bench(running)


if __name__ == "__main__":
    main()
