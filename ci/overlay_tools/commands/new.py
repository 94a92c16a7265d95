"""Start a model of one's own: its files, green as they are written."""

from __future__ import annotations

import argparse

from overlay_tools import console
from overlay_tools.checkout import only_writer
from overlay_tools.commands import Command
from overlay_tools.commands.shared import open_engine
from overlay_tools.errors import UsageError
from overlay_tools.scaffold.base import find_base
from overlay_tools.scaffold.model import KINDS, NewModel, check_name, choose_kind, make_model
from overlay_tools.settings import Project


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("name", metavar="NAME", help="the model, as my_model: its files and model_type are called so")
    parser.add_argument(
        "--from",
        dest="base",
        metavar="ARCHITECTURE",
        help="what it derives from: one of upstream's decoders that Transformers has as well (default: Llama's, or what"
        " the kind is for)",
    )
    parser.add_argument(
        "--kind",
        choices=KINDS,
        help=f"{'; '.join(f'{name}, {kind.about}' for name, kind in KINDS.items())} (default: what --from is for)",
    )


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Write the model's files and show what they are."""
    check_name(arguments.name)
    kind, architecture = choose_kind(arguments.kind, arguments.base)
    with only_writer(project.root), open_engine(project, project.default, None, gpu=False) as python:
        base = find_base(project, architecture, arguments.name, python)
        if kind == "reward" and base.classifier is None:
            raise UsageError(f"Transformers has no {architecture} that scores: there is nothing to compare it with.")
        new = NewModel(name=arguments.name, kind=kind, base=base)
        files = make_model(project, new, python)
    console.table(new.architecture, [(str(path), f"{len(text.splitlines())} lines") for path, text in files.items()])
    console.line(f"Next: nox -s test-{project.default} -- -k {arguments.name.replace('_', '-')}")
    console.line(f"Then change what TODO marks; tests/models/{arguments.name}/README.md says in which order.")


COMMAND = Command(
    about="Writes a model of your own, derived from one of upstream's: the served model, its configuration, its row,"
    " its reference model in Transformers, and the case that all tests run on. It is green as it is; TODO marks where"
    " to change it.",
    examples={
        "my_model": "a Llama under a name of its own",
        "my_model --from Qwen3MoeForCausalLM": "another base",
        "my_model --from Qwen3ForCausalLM --kind embedding": "one that gives embeddings",
        "my_model --kind derived": "a Qwen3-Next with own extensions, and its draft",
        "my_model --kind multimodal": "a Qwen3-Next that takes pictures",
    },
    add_arguments=add_arguments,
    run=run,
)
