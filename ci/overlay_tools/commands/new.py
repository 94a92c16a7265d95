"""Start a model of one's own: its files, green as they are written."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from overlay_tools import console
from overlay_tools.checkout import only_writer
from overlay_tools.commands import Command
from overlay_tools.commands.shared import open_engine
from overlay_tools.errors import UsageError
from overlay_tools.scaffold.base import find_base
from overlay_tools.scaffold.model import KINDS, NewModel, architecture_of, check_name, choose_kind, make_model
from overlay_tools.scaffold.project import make_project, name_project, update_project
from overlay_tools.settings import Project


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="the model, as my_model: its files and model_type are called so (no default; --update takes none)",
    )
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
    parser.add_argument(
        "--project",
        type=Path,
        metavar="PATH",
        help="write it into a new folder outside this checkout, as a plugin project of its own, which is called as that"
        " folder: pip installs it beside an SGLang as it was published (default: into this checkout)",
    )
    parser.add_argument(
        "--update",
        type=Path,
        metavar="PATH",
        help="in such a project, put this checkout's revision of all that is not the project's own (default: none)",
    )


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Write the model's files and show what they are."""
    if arguments.update is not None:
        if any((arguments.name, arguments.base, arguments.kind, arguments.project)):
            raise UsageError("--update takes the project's path and nothing else.", hint="A new model has a NAME.")
        table(update_project(project, arguments.update), str(arguments.update))
        return
    if arguments.name is None:
        raise UsageError("Which model?", hint="Name it as my_model, for example.")
    check_name(arguments.name)
    target = None if arguments.project is None else name_project(project, arguments.project)
    kind, architecture = choose_kind(arguments.kind, arguments.base)
    with only_writer(project.root), open_engine(project, project.default, None, gpu=False) as python:
        base = find_base(project, architecture, arguments.name, architecture_of(arguments.name, kind), python)
        if kind == "reward" and base.classifier is None:
            raise UsageError(f"Transformers has no {architecture} that scores: there is nothing to compare it with.")
        new = NewModel(name=arguments.name, kind=kind, base=base)
        if target is not None:
            table(make_project(project, new, target, python), f"{target.distribution}: {new.architecture}")
            console.line(f"Next: see {target.folder / 'README.md'}")
            return
        files = make_model(project, new, python)
    table({str(path): text.encode() for path, text in files.items()}, new.architecture)
    console.line(f"Next: nox -s test-{project.default} -- -k {arguments.name.replace('_', '-')}")
    console.line(f"Then change what TODO marks; tests/models/{arguments.name}/README.md says in which order.")


def table(files: Mapping[str, bytes], title: str) -> None:
    """Show files with their lengths: of a text its lines, of a checkpoint's file its bytes."""
    lengths = [
        f"{len(data):,} bytes" if b"\0" in data else f"{len(data.splitlines())} lines" for data in files.values()
    ]
    console.table(title, list(zip(files, lengths, strict=True)))


COMMAND = Command(
    about="Writes a model of your own, derived from one of upstream's: the served model, its configuration, its row,"
    " its reference model in Transformers, and the case that all tests run on. It is green as it is; TODO marks where"
    " to change it. With --project, they are a project outside this checkout.",
    examples={
        "my_model": "a Llama under a name of its own",
        "my_model --from Qwen3MoeForCausalLM": "another base",
        "my_model --from Qwen3ForCausalLM --kind embedding": "one that gives embeddings",
        "my_model --kind derived": "a Qwen3-Next with own extensions, and its draft",
        "my_model --kind multimodal": "a Qwen3-Next that takes pictures",
        "my_model --project ../acme-models": "a plugin project of its own, which pip installs",
    },
    add_arguments=add_arguments,
    run=run,
)
