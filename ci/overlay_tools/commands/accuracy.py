"""Measure how well a checkpoint does on tasks, beside Transformers."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from overlay_tools import console
from overlay_tools.checkout import own_folder
from overlay_tools.checkpoints import named
from overlay_tools.commands import DEFAULT, LOCKED, Command
from overlay_tools.commands.options import add_passed_on, add_python, add_timeout, count, remove_outputs
from overlay_tools.commands.shared import Begun, Plan, begin, new_file, open_engine
from overlay_tools.engines import engine_config
from overlay_tools.engines.server import Server
from overlay_tools.errors import UsageError
from overlay_tools.proving.accuracy.harness import LM_EVAL, Harness, open_harness, open_lm_eval
from overlay_tools.proving.accuracy.scores import Earlier, Pair, Results, Score, dump_engine
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
        "--engine",
        type=Path,
        metavar="RESULTS.json",
        help="ask Transformers alone: the engine did what this file of an earlier run says (default: ask the engine)",
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
    add_timeout(parser)
    add_passed_on(parser, "of sglang.launch_server")


def run(project: Project, arguments: argparse.Namespace) -> int:
    """Ask both, show the scores, and return 1 if the engine does worse."""
    tasks = open_tasks(arguments.task)
    asked = {"lm-eval": LM_EVAL, "--limit": arguments.limit}
    earlier, done = _read_files(arguments, asked, [task.name for task in tasks])
    reads = [*arguments.task, arguments.against]
    begun = begin(
        project,
        arguments,
        None if earlier else "alike",
        {"--json": arguments.json},
        reads,
        asked="Transformers" if done else "The engine",
    )
    if done is None or arguments.json is None or arguments.json.resolve() != done.path.resolve():
        remove_outputs(arguments.json)  # unless it holds what the engine did
    with ExitStack() as stack:
        python = stack.enter_context(open_engine(project, begun.version, arguments.python, gpu=begun.device.gpu))
        packages = stack.enter_context(open_lm_eval(python, arguments.python))
        folder = stack.enter_context(own_folder(project.root / ".nox" / "servers"))
        checkpoint = named.open_checkpoint(arguments.checkpoint, python, arguments.passed_on)
        plan = begun.plan(checkpoint)
        about = done.about if done else _about(arguments, begun, plan)
        reference = Reference(
            python, project.root, folder, checkpoint, arguments.reference, plan.where, flags=arguments.passed_on
        )
        job = {**reference.job, "dtype": about["dtype"], "beside": earlier is None}
        with console.step("Read the tasks"):
            harness = stack.enter_context(
                open_harness(python, packages, job, reference.env, folder, tasks, arguments.limit)
            )
        if done is not None:
            engine = {task.name: done.scores[task.name] for task in tasks}
        else:
            engine = _ask_engine(harness, begun, python, checkpoint, folder, arguments.timeout)
        against = f"the engine in {earlier.path}" if earlier else f"Transformers in {about['dtype']}"
        kept = arguments.engine or arguments.json or new_file(project, "scores", checkpoint.name)
        with _keeping(kept, None if done else dump_engine(asked, about, engine)):
            if earlier is not None:
                other = {name: earlier.score(name, score) for name, score in engine.items()}
            else:
                with console.step(f"Ask {against}"):
                    other = harness.ask_reference(engine)
        if kept not in (arguments.engine, arguments.json):
            kept.unlink()
    pairs = {name: Pair(engine=score, other=other[name]) for name, score in engine.items()}
    results = Results(asked=asked, about=about, bound=arguments.bound / 100, against=against, tasks=pairs)
    _show(results)
    if arguments.json is not None:
        write_text(results.to_json(), arguments.json)
        console.line(f"All figures are in {arguments.json}.")
    return 1 if results.worse else 0


def _read_files(
    arguments: argparse.Namespace, asked: Mapping[str, object], tasks: Sequence[str]
) -> tuple[Earlier | None, Earlier | None]:
    """Read what the engine did in earlier runs: in the place of Transformers, and in that of the engine.

    What the engine is asked no more is taken from its file; a person may name it all the same.
    Raises an OverlayError if a file is none of a run like this one, or another is named beside it.
    """
    earlier = None if arguments.against == _TRANSFORMERS else Earlier.read(Path(arguments.against))
    if earlier is not None:
        for option, value in {"--reference": arguments.reference, "--engine": arguments.engine}.items():
            if value is not None:
                what = f"{option} asks Transformers, and --against names a file in place of it."
                raise UsageError(what, hint="Leave one of them out.")
        earlier.check(asked, tasks)
    done = None if arguments.engine is None else Earlier.read(arguments.engine)
    if done is not None:
        arguments.version = arguments.version or done.about["sglang"]
        arguments.passed_on = arguments.passed_on or done.about["arguments"]
        about = {"checkpoint": arguments.checkpoint, "sglang": arguments.version, "arguments": arguments.passed_on}
        done.check({**about, **asked}, tasks)
    return earlier, done


def _about(arguments: argparse.Namespace, begun: Begun, plan: Plan) -> dict[str, Any]:
    return {
        "checkpoint": arguments.checkpoint,
        "sglang": begun.version,
        "device": "GPU" if begun.device.gpu else "CPU",
        "dtype": plan.dtype,
        "arguments": arguments.passed_on,
    }


def _ask_engine(
    harness: Harness, begun: Begun, python: Path, checkpoint: Path, folder: Path, timeout: float
) -> dict[str, Score]:
    usual, environment = engine_config.usual(checkpoint, gpu=begun.device.gpu)
    flags = [*engine_config.flags(usual), *begun.flags]
    with (
        console.step(f"Ask sglang {begun.version}"),
        Server(python, checkpoint, flags, env=environment, log=folder / "server.log", timeout=timeout) as server,
    ):
        return harness.ask_server(server, _AT_ONCE[begun.device.gpu])


@contextmanager
def _keeping(path: Path, text: str | None) -> Iterator[None]:
    """Write what the engine did, and say where that is if the block fails; None if it is there."""
    if text is not None:
        write_text(text, path)
    try:
        yield
    except BaseException:
        console.line(f"What the engine did is in {path}: with --engine {path}, Transformers alone is asked.")
        raise


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
        "~/My --task gsm8k --engine r.json --json r.json": "to go on where Transformers failed, after --json r.json",
    },
    add_arguments=add_arguments,
    run=run,
)
