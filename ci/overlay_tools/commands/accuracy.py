"""Measure how well a checkpoint does on tasks, beside Transformers."""

from __future__ import annotations

import argparse
import math
from contextlib import ExitStack
from pathlib import Path

from overlay_tools import console
from overlay_tools.checkout import own_folder
from overlay_tools.checkpoints import named
from overlay_tools.commands import DEFAULT, LOCKED, Command
from overlay_tools.commands.shared import add_passed_on, add_python, begin, count, open_engine
from overlay_tools.engines import engine_config
from overlay_tools.engines.server import Server
from overlay_tools.errors import UsageError
from overlay_tools.proving.accuracy.harness import LM_EVAL, open_harness, open_lm_eval
from overlay_tools.proving.accuracy.scores import Earlier, Pair, Results, Score
from overlay_tools.proving.accuracy.tasks import open_tasks
from overlay_tools.proving.reference import Reference
from overlay_tools.report.html import write_text
from overlay_tools.settings import Project

_TRANSFORMERS = "transformers"
_AT_ONCE = {False: 8, True: 64}  # requests, on a CPU and on a GPU


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=named.HELP)
    parser.add_argument("version", nargs="?", metavar="VERSION", help=f"{LOCKED} (default: {DEFAULT})")
    parser.add_argument(
        "--task",
        action="append",
        required=True,
        metavar="NAME|FILE",
        help="a task: gsm8k, mmlu, mmmu or another of lm-eval's, from the Hugging Face hub, or a JSONL file; several"
        " if repeated",
    )
    parser.add_argument(
        "--against",
        default=_TRANSFORMERS,
        metavar="transformers|RESULTS.json",
        help="what the engine must not do worse than: the reference model, or what the engine did in an earlier run,"
        " whose --json this names (default: transformers)",
    )
    parser.add_argument(
        "--reference",
        metavar="MODULE:CLASS",
        help="a model in Transformers to ask beside it (default: that of tests/models/, or Transformers' own)",
    )
    parser.add_argument("--limit", type=count, metavar="N", help="ask the first N documents of a task (default: all)")
    parser.add_argument(
        "--bound",
        type=_points,
        default=0.0,
        metavar="POINTS",
        help="percentage points by which the engine may be worse (default: 0)",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="file to write all figures to (default: none)")
    add_python(parser, "run the engine with")
    add_passed_on(parser, "of sglang.launch_server")


def run(project: Project, arguments: argparse.Namespace) -> int:
    """Ask both, show the scores, and return 1 if the engine does worse."""
    tasks = open_tasks(arguments.task)
    asked = {"lm-eval": LM_EVAL, "--limit": arguments.limit}
    earlier = None if arguments.against == _TRANSFORMERS else Earlier.read(Path(arguments.against))
    if earlier is not None and arguments.reference:
        raise UsageError(
            "--reference names a model to ask, and --against a file in place of one.", hint="Leave one of them out."
        )
    if earlier is not None:
        earlier.check(asked, [task.name for task in tasks])
    reads = [*arguments.task, arguments.against]
    begun = begin(project, arguments, None if earlier else "alike", {"--json": arguments.json}, reads)
    version, device = begun.version, begun.device
    with ExitStack() as stack:
        python = stack.enter_context(open_engine(project, version, arguments.python, gpu=device.gpu))
        packages = stack.enter_context(open_lm_eval(python, arguments.python))
        folder = stack.enter_context(own_folder(project.root / ".nox" / "servers"))
        checkpoint = named.open_checkpoint(arguments.checkpoint, python)
        plan = begun.plan(checkpoint)
        reference = Reference(python, project.root, folder, checkpoint, arguments.reference, plan.where)
        job = {**reference.job, "dtype": plan.dtype, "beside": earlier is None}
        with console.step("Read the tasks"):
            harness = stack.enter_context(
                open_harness(python, packages, job, reference.env, folder, tasks, arguments.limit)
            )
        usual, environment = engine_config.usual(checkpoint, gpu=device.gpu)
        flags = [*engine_config.flags(usual), *arguments.passed_on]
        with (
            console.step(f"Ask sglang {version}"),
            Server(python, checkpoint, flags, env=environment, log=folder / "server.log") as server,
        ):
            engine = harness.ask_server(server, _AT_ONCE[device.gpu])
        if earlier is not None:
            against = f"the engine in {earlier.path}"
            other = {name: earlier.score(name, score) for name, score in engine.items()}
        else:
            against = f"Transformers in {plan.dtype}"
            with console.step(f"Ask {against}"):
                other = harness.ask_reference(engine)
    results = Results(
        asked=asked,
        about={
            "checkpoint": arguments.checkpoint,
            "sglang": version,
            "device": "GPU" if device.gpu else "CPU",
            "dtype": plan.dtype,
            "arguments": arguments.passed_on,
        },
        bound=arguments.bound / 100,
        against=against,
        tasks={name: Pair(engine=score, other=other[name]) for name, score in engine.items()},
    )
    _show(results)
    if arguments.json is not None:
        write_text(results.to_json(), arguments.json)
        console.line(f"All figures are in {arguments.json}.")
    return 1 if results.worse else 0


def _show(results: Results) -> None:
    about = results.about
    console.line(
        f"{about['checkpoint']} with sglang {about['sglang']}, {about['device']}, {about['dtype']},"
        f" beside {results.against}",
        style="bold",
    )
    heads = ["task", "by", "documents", "engine", "the other", "difference", "95% interval", "right alone"]
    console.grid(heads, [_row(name, pair) for name, pair in results.tasks.items()])
    console.line("Percentages with their standard errors. Right alone: documents that only the one, and only the")
    console.line("other, gets right; the interval of the difference is that of Bonett and Price for paired data.")
    allowed = f" by more than {_shown(results.bound)} points" if results.bound else ""
    if results.worse:
        console.line(
            f"The engine does worse than {results.against}{allowed}: {', '.join(results.worse)}.", style="bold red"
        )
    else:
        console.line(f"The engine does not do worse than {results.against}{allowed}.", style="green")


def _row(name: str, pair: Pair) -> list[str]:
    low, high = pair.interval
    better, worse = pair.alone
    return [
        name,
        pair.engine.metric,
        str(len(pair.engine.right)),
        *(_with_error(score) for score in (pair.engine, pair.other)),
        f"{pair.difference * 100:+.1f}",
        f"{low * 100:+.1f} to {high * 100:+.1f}",
        f"{better}, {worse}",
    ]


def _with_error(score: Score) -> str:
    return f"{_shown(score.mean)} ± {_shown(score.error)}"


def _shown(share: float) -> str:
    return f"{share * 100:.1f}"


def _points(text: str) -> float:
    try:
        points = float(text)
    except ValueError:
        points = math.nan
    if not 0 <= points < 100:
        raise argparse.ArgumentTypeError(f"{text} is not a number of percentage points, from 0 to less than 100")
    return points


COMMAND = Command(
    about="Asks a served checkpoint and Transformers the same tasks with lm-eval, on the OpenAI endpoint and in"
    " process: the same prompts in the same tokens, greedily, judged alike. Shows both scores and the 95% confidence"
    " interval of their difference, and ends with status 1 where the engine does worse than the bound allows.",
    examples={
        "tests/data/qwen3-next-ext --task questions.jsonl": "a checkpoint of ours, and a file of your own",
        "OWNER/NAME 0.5.17 --task gsm8k --task mmlu --limit 200": "tasks of the hub, in part",
        "~/My --task gsm8k --against before.json --bound 0.5": "after an earlier run with --json before.json",
    },
    add_arguments=add_arguments,
    run=run,
)
