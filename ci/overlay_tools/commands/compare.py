"""Compare what a checkpoint answers with what Transformers computes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from overlay_tools import console
from overlay_tools.checkout import own_folder
from overlay_tools.checkpoints import named
from overlay_tools.commands import DEFAULT, LOCKED, Command
from overlay_tools.commands.options import add_passed_on, add_python, add_timeout, count, remove_outputs
from overlay_tools.commands.shared import Plan, begin, open_engine
from overlay_tools.errors import CompareError
from overlay_tools.proving.compare.comparison import (
    Comparison,
    Engine,
    ask_engine,
    ask_engine_for_vectors,
    judge,
    judge_vectors,
    locate,
)
from overlay_tools.proving.compare.engine import Answer
from overlay_tools.proving.lines import ENDINGS, PICTURE, read_lines
from overlay_tools.proving.reference import Question, Reference
from overlay_tools.report.comparison import print_comparison, render_comparison
from overlay_tools.report.html import write_text
from overlay_tools.settings import Project
from overlay_tools.user_files import read_text

_ONE_A_LINE = (
    'Name a file with a prompt on each line; if its name ends with .jsonl, a line is {"prompt": TEXT} or'
    f' {{"prompt": TEXT, "images": [PATH, ...]}}, with a {PICTURE} in the text for each of them.'
)
_TEXT = "tests/data/heldout.txt"  # from which prompts are cut where none are given


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=named.HELP)
    parser.add_argument("version", nargs="?", metavar="VERSION", help=f"{LOCKED} (default: {DEFAULT})")
    parser.add_argument(
        "--reference",
        metavar="MODULE:CLASS",
        help="a model in plain PyTorch to compare with, from tests/ or this folder (default: that of tests/models/ or"
        " Transformers' own)",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help=f"prompts, one a line, or JSONL (default: some are cut from {_TEXT}, and pictures are drawn)",
    )
    parser.add_argument("--tokens", type=count, default=24, metavar="N", help="tokens of an answer (default: 24)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="file to write all figures to (default: none)")
    parser.add_argument("--html", type=Path, metavar="PATH", help="page to write (default: none)")
    add_python(parser, "run the engine with")
    add_timeout(parser)
    add_passed_on(parser, "of sglang.launch_server")


def run(project: Project, arguments: argparse.Namespace) -> int:
    """Compare, show the table, and return 1 if the two part."""
    questions = _read_prompts(arguments.prompts)
    begun = begin(
        project, arguments, "exact", {"--json": arguments.json, "--html": arguments.html}, [arguments.prompts]
    )
    remove_outputs(arguments.json, arguments.html)
    with (
        open_engine(project, begun.version, arguments.python, gpu=begun.device.gpu) as python,
        own_folder(project.root / ".nox" / "servers") as folder,
    ):
        checkpoint = named.open_checkpoint(arguments.checkpoint, python, arguments.passed_on)
        plan = begun.plan(checkpoint)
        reference = Reference(
            python,
            project.root,
            folder,
            checkpoint,
            arguments.reference,
            plan.where,
            flags=arguments.passed_on,
        )
        engine = Engine(
            python=python,
            version=begun.version,
            gpu=begun.device.gpu,
            dtype=plan.dtype,
            flags=arguments.passed_on,
            folder=folder,
            tokens=arguments.tokens,
            timeout=arguments.timeout,
        )
        comparison = _compare(engine, reference, checkpoint, questions, project.root / _TEXT, plan)
    print_comparison(comparison)
    for path, text in {arguments.json: comparison.to_json(), arguments.html: render_comparison(comparison)}.items():
        if path is not None:
            write_text(text, path)
            console.line(f"All figures are in {path}.")
    return 0 if comparison.same else 1


def _compare(
    engine: Engine,
    reference: Reference,
    checkpoint: Path,
    questions: Sequence[Question],
    text: Path,
    plan: Plan,
) -> Comparison:
    with console.step("Describe the reference model"):
        described = reference.describe(questions, read_text(text))
    answers: dict[str, list[Answer]] = {}
    if described.vectors:
        vectors = ask_engine_for_vectors(engine, checkpoint, described.prompts)
        rows = judge_vectors(vectors, described.prompts, reference, engine.dtype)
    else:
        answers = ask_engine(engine, checkpoint, described.prompts, drafts=plan.drafts, state=plan.state)
        rows = judge(answers, reference, engine.dtype)
    comparison = Comparison(
        checkpoint=str(checkpoint),
        release=engine.version,
        device="GPU" if engine.gpu else "CPU",
        dtype=engine.dtype,
        described=described,
        rows=rows,
    )
    if comparison.same:
        return comparison
    found = locate(engine, checkpoint, reference, described.prompts, answers, comparison.rows)
    return replace(comparison, **({"not_located": found} if isinstance(found, str) else {"difference": found}))


def _read_prompts(path: Path | None) -> list[Question]:
    if path is None:
        return []
    text = read_text(path, CompareError, hint=_ONE_A_LINE)
    if path.suffix in ENDINGS:
        return [
            Question(prompt=line["prompt"], images=line.get("images", []))
            for line in read_lines(path, text, CompareError, _ONE_A_LINE, _problem)
        ]
    texts = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.lstrip().startswith('{"prompt"'):
            raise CompareError(
                f"{path}:{number}: this looks like JSON, and a file of this name has a text on each line.",
                hint=f"Give the file a name that ends with {ENDINGS[-1]}.",
            )
        texts += [Question(prompt=line)] * bool(line.strip())
    if not texts:
        raise CompareError(f"{path} has no prompt.", hint=_ONE_A_LINE)
    return texts


def _problem(line: dict[str, Any]) -> str:
    """Say what is wrong with a line; what `accuracy` knows of one, beside the prompt, has nothing to do with this."""
    unknown = sorted(line.keys() - {"prompt", "images", "answer", "choices"})
    return f"`{unknown[0]}` is not known" if unknown else ""


COMMAND = Command(
    about="Serves a checkpoint, asks for greedy answers with logprobs, and compares them with what Transformers"
    " computes in float32: at once, token by token, from the prefix cache, in a batch, in chunks, and with drafts if"
    " the checkpoint has some. Where the two part it names the first layer and module that differs, and ends with"
    " status 1.",
    examples={
        "tests/data/qwen3-next-ext": "a checkpoint of ours",
        "~/Llama 0.5.17 --prompts prompts.txt": "with a release and prompts of your own",
        "~/My --reference my_model:MyModel -- --trust-remote-code": "with a reference model, and an upstream argument",
    },
    add_arguments=add_arguments,
    run=run,
)
