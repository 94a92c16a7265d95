"""Measure how fast a checkpoint is served, beside Transformers."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from overlay_tools import console
from overlay_tools.checkout import own_folder
from overlay_tools.checkpoints import named
from overlay_tools.commands import DEFAULT, LOCKED, Command
from overlay_tools.commands.options import add_passed_on, add_python, add_timeout, count
from overlay_tools.commands.shared import begin, open_engine
from overlay_tools.engines import engine_config
from overlay_tools.engines.device import Device
from overlay_tools.engines.server import Server
from overlay_tools.errors import BenchError
from overlay_tools.proving.bench.rounds import Figure, Load, Reference, Speed, measure_engine, open_reference
from overlay_tools.proving.reference import Reference as Model
from overlay_tools.report.html import write_text
from overlay_tools.settings import Project

_SLACK = 64  # tokens that a request may hold beside its own: of a page, and of a step ahead

# Of a Speed: what it is called, how it is shown, and whether less is better.
_METRICS: dict[str, tuple[str, Callable[[float], str], bool]] = {
    "first": ("time to first token", lambda value: f"{value * 1000:.0f} ms", True),
    "between": ("time between tokens", lambda value: f"{value * 1000:.1f} ms", True),
    "second": ("tokens a second", lambda value: f"{value:.1f}", False),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=named.HELP)
    parser.add_argument("version", nargs="?", metavar="VERSION", help=f"{LOCKED} (default: {DEFAULT})")
    for name, default, what in (
        ("input", 128, "tokens of a prompt"),
        ("output", 64, "tokens of an answer"),
        ("rounds", 3, "rounds, of the engine and of Transformers in turns"),
    ):
        parser.add_argument(f"--{name}", type=count, default=default, metavar="N", help=f"{what} (default: {default})")
    parser.add_argument(
        "--concurrency",
        type=count,
        nargs="+",
        default=[1, 8],
        metavar="N",
        help="requests at the same time, some numbers (default: 1 8)",
    )
    parser.add_argument(
        "--reference",
        metavar="MODULE:CLASS",
        help="a model in Transformers to measure beside it (default: that of tests/models/, or Transformers' own)",
    )
    parser.add_argument("--alone", action="store_true", help="measure the engine alone (default: beside Transformers)")
    parser.add_argument(
        "--markdown", type=Path, metavar="PATH", help="file for the table, for a pull request (default: none)"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for what each round gave (default: none)")
    add_python(parser, "serve with")
    add_timeout(parser)
    add_passed_on(parser, "of sglang.launch_server")


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Measure, show the table, and write it where that is asked for."""
    begun = begin(
        project,
        arguments,
        None if arguments.alone else "beside",
        {"--markdown": arguments.markdown, "--json": arguments.json},
    )
    version, device = begun.version, begun.device
    loads = [Load(at_once=n, read=arguments.input, written=arguments.output) for n in arguments.concurrency]
    with ExitStack() as stack:
        python = stack.enter_context(open_engine(project, version, arguments.python, gpu=device.gpu))
        folder = stack.enter_context(own_folder(project.root / ".nox" / "servers"))
        checkpoint = named.open_checkpoint(arguments.checkpoint, python, arguments.passed_on)
        plan = begun.plan(checkpoint)
        reference, vocabulary = None, 0
        if not arguments.alone:
            vocabulary = _vocabulary(checkpoint / "config.json")
            with console.step("Load the reference model"):
                of = Model(python, project.root, folder, checkpoint, arguments.reference, plan.where)
                job = {**of.job, "dtype": plan.dtype}
                reference = stack.enter_context(open_reference(python, job, of.env, folder))
        server = _server(python, checkpoint, arguments.passed_on, device, folder, loads, arguments.timeout)
        with console.step(f"Start sglang {version}"):
            stack.enter_context(server)
        speeds = _measure(server, reference, loads, arguments.rounds, vocabulary, folder)
    title = f"{arguments.checkpoint}, {arguments.input} tokens read and {arguments.output} written, sglang {version}"
    other = f"{reference.said['reference']}, Transformers {reference.said['transformers']}" if reference else ""
    rows = _rows(speeds)
    console.line(title + (f" beside {other}" if other else ""), style="bold")
    heads = ["at once", "", "engine", "reference", "engine is"] if reference else ["at once", "", "engine"]
    console.grid(heads, rows)
    if arguments.markdown is not None:
        write_text(_markdown(title, other, heads, rows), arguments.markdown)
    if arguments.json is not None:
        found = [
            {"load": asdict(load), **{who: [asdict(one) for one in of] for who, of in by.items()}}
            for load, by in speeds
        ]
        write_text(json.dumps(found, indent=1) + "\n", arguments.json)
    console.line("Medians of the rounds, in brackets the least and the most.")


def _measure(
    server: Server, reference: Reference | None, loads: Sequence[Load], rounds: int, vocabulary: int, folder: Path
) -> list[tuple[Load, dict[str, list[Speed]]]]:
    """Measure each load in rounds, the engine and the reference model in turns, after one that warms up."""
    found = []
    turns = len(loads) * (rounds + 1) * (1 if reference is None else 2)
    turn = itertools.count()
    with console.step(f"Measure {rounds} round{'s' * (rounds > 1)} of each, after one to warm up"):
        for load in loads:
            speeds: dict[str, list[Speed]] = {"engine": [], **({"reference": []} if reference else {})}
            for number in range(rounds + 1):
                console.progress(next(turn), turns)
                speeds["engine"].append(measure_engine(server, load, number, folder))
                if reference is not None:
                    console.progress(next(turn), turns)
                    speeds["reference"].append(reference.measure(load, number, vocabulary))
            found.append((load, {who: of[1:] for who, of in speeds.items()}))
    return found


def _rows(speeds: Sequence[tuple[Load, dict[str, list[Speed]]]]) -> list[list[str]]:
    rows = []
    for load, by in speeds:
        for metric, (name, shown, less) in _METRICS.items():
            figures = {who: Figure.of([getattr(one, metric) for one in of]) for who, of in by.items()}
            row = [str(load.at_once), name]
            row += [_cell(of, shown) for of in figures.values()]
            if "reference" in figures:
                pairs = [
                    (getattr(a, metric), getattr(b, metric)) for a, b in zip(by["engine"], by["reference"], strict=True)
                ]
                row.append(_ratio([(b, a) if less else (a, b) for a, b in pairs]))
            rows.append(row)
    return rows


def _cell(of: Figure, shown: Callable[[float], str]) -> str:
    """Show a figure. Upstream's benchmark gives 0 for what it has not seen, as tokens without a text of their own."""
    return f"{shown(of.median)} ({shown(of.least)} to {shown(of.most)})" if of.least > 0 else "not seen"


def _ratio(pairs: Sequence[tuple[float, float]]) -> str:
    """Say how many times as fast it was in the median; nothing where that was not seen: one token has no next."""
    if any(0 in pair for pair in pairs):
        return ""
    return f"{Figure.of([value / of for value, of in pairs]).median:.2f} times as fast"


def _markdown(title: str, other: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [title + (f", beside {other}" if other else "") + ":", ""]
    lines += [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]
    return "\n".join([*lines, "", "Medians of the rounds, in brackets the least and the most.", ""])


def _server(
    python: Path,
    checkpoint: Path,
    flags: Sequence[str],
    device: Device,
    folder: Path,
    loads: Sequence[Load],
    timeout: float,
) -> Server:
    """Describe a server that has room for each load at once: a queue would be measured beside a batch."""
    usual, environment = engine_config.usual(checkpoint, gpu=device.gpu)
    if not device.gpu:
        tokens = max(load.at_once * (load.read + load.written + _SLACK) for load in loads)
        room = {"max_running_requests": max(load.at_once for load in loads), "max_total_tokens": tokens}
        usual = {**usual, **{name: max(int(str(usual[name])), wanted) for name, wanted in room.items()}}
    return Server(
        python,
        checkpoint,
        [*engine_config.flags(usual), *flags],
        env=environment,
        log=folder / "server.log",
        timeout=timeout,
    )


def _vocabulary(path: Path) -> int:
    """Return how many tokens a config.json says that there are, of which prompts are made for the reference model.

    Raises BenchError if it does not.
    """
    config = named.read_config(path)
    for part in (config.get("text_config"), config):
        if isinstance(part, dict) and isinstance(size := part.get("vocab_size"), int):
            return size
    raise BenchError(
        f"{path}: neither it nor its text_config has a vocab_size, from which the reference model's prompts are made.",
        hint="--alone does without.",
    )


COMMAND = Command(
    about="Serves a checkpoint, and measures the time to the first token, the time between tokens and the throughput"
    " with upstream's own serving benchmark; beside it what Transformers' `generate` takes for as many prompts in one"
    " batch, in alternating rounds. What follows a second -- goes to the server.",
    examples={
        "tests/data/qwen3-next-ext": "a checkpoint of ours",
        "model.gguf 0.5.17 --input 512 --output 128 --concurrency 1 16": "with a load of your own",
        "~/My --markdown table.md -- --speculative-algorithm NEXTN": "with arguments of upstream's, for a pull request",
    },
    add_arguments=add_arguments,
    run=run,
)
