"""Run the benchmarks on a GPU in the environment of a release."""

from __future__ import annotations

import argparse
import os

from overlay_tools.commands import DEFAULT, LOCKED, Command
from overlay_tools.commands.options import add_passed_on, add_python
from overlay_tools.commands.shared import open_engine, require_cuda
from overlay_tools.settings import Project
from overlay_tools.subprocesses import run_attached

_PARTS = ("layers", "overhead", "transformers", "drafts", "tiles", "scale")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "parts",
        nargs="*",
        type=_part,
        metavar="PART",
        help="what to measure: layers, overhead, transformers, drafts, tiles or scale (default: all of them)",
    )
    parser.add_argument("--release", metavar="VERSION", help=f"{LOCKED} (default: {DEFAULT})")
    add_python(parser, "measure with")
    add_passed_on(parser, "of the servers")


def _part(text: str) -> str:
    if text not in _PARTS:
        raise argparse.ArgumentTypeError(f"{text} is not one of its parts: {', '.join(_PARTS)}")
    return text


def run(project: Project, arguments: argparse.Namespace) -> int:
    """Run the parts in the release's environment, and return their exit status."""
    require_cuda()
    path = os.pathsep.join(str(project.root / name) for name in ("ci", "tests"))
    with open_engine(project, arguments.release or project.default, arguments.python, gpu=True) as python:
        words = [python, "-m", "gpu.bench", *arguments.parts, "--", *arguments.passed_on]
        return run_attached(words, env={"PYTHONPATH": path})


COMMAND = Command(
    about="Measures on CUDA GPUs, side by side: fused layers beside upstream's (layers), the derived model beside"
    " its base (overhead), beside Transformers (transformers), and with drafts (drafts), tuned experts beside"
    " upstream's (tiles), all these on one GPU; and beside its base at the sizes of Qwen3-Next-80B, on all (scale)."
    " The report is Markdown.",
    examples={"": "everything", "layers drafts --release 0.5.17": "two parts, on SGLang 0.5.17"},
    add_arguments=add_arguments,
    run=run,
)
