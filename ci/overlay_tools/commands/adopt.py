"""Make a Qwen3-Next-Ext checkpoint of a stock Qwen3-Next one."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from overlay_tools import console
from overlay_tools.checkpoints.adopt import KEYS, adopt, read_stock
from overlay_tools.commands import Command
from overlay_tools.settings import Project


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of the stock checkpoint")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make; it links to CHECKPOINT's weights")
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="what config.json is given (default: nothing, the model stays as it is); VALUE is JSON, or else a string;"
        f" KEY is one of {', '.join(KEYS)}",
    )
    parser.add_argument(
        "--adapter-rank", metavar="R", help="the same as --set head_adapter_rank=R (default: no adapter)"
    )


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Make the checkpoint, and show what was linked and what was written."""
    rank = [] if arguments.adapter_rank is None else [f"head_adapter_rank={arguments.adapter_rank}"]
    with console.step(f"Read {arguments.checkpoint}"):
        stock = read_stock(arguments.checkpoint)
    with console.step(f"Write {arguments.out}"):
        adopted = adopt(stock, arguments.out, [*arguments.set, *rank], project.overlay)
    rows = [("linked", f"{adopted.linked} files, {adopted.linked_bytes:,} bytes")]
    rows += [("written", f"{name}, {size:,} bytes") for name, size in adopted.written.items()]
    rows += [("new tensors", str(adopted.tensors)), ("copied", f"{sum(adopted.written.values()):,} bytes in all")]
    console.table(str(arguments.out), rows)
    console.line(f"Serve it: nox -s serve -- --model {shlex.quote(str(arguments.out))}")


COMMAND = Command(
    about="Makes a folder that SGLang with the overlay serves as Qwen3-Next-Ext: the stock checkpoint's weights are"
    " linked, not copied, config.json is written with the extensions that --set switches on, and tensors that they need"
    " are added so that they change nothing before they are trained.",
    examples={
        "~/Qwen3-Next ~/Qwen3-Next-Ext": "the same model under its new name",
        "~/Qwen3-Next ~/Qwen3-Next-Ext --set scoring_func=sigmoid n_group=8 topk_group=4": "with another router",
        "~/Qwen3-Next ~/Qwen3-Next-Ext --adapter-rank 16": "with a low-rank adapter before the head",
    },
    add_arguments=add_arguments,
    run=run,
)
