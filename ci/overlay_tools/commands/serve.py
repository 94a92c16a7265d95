"""Build, install and serve a model, and ask it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from overlay_tools import console
from overlay_tools.checkout import own_folder
from overlay_tools.checkpoints import demo_model, named
from overlay_tools.commands import DEFAULT, LOCKED, Command
from overlay_tools.commands.options import add_passed_on, add_python, add_timeout
from overlay_tools.commands.shared import check_flags, engine_folder, open_engine
from overlay_tools.engines import engine_config
from overlay_tools.engines.device import Device, choose_device
from overlay_tools.engines.server import Server, check_free
from overlay_tools.engines.smoke import Questions, ask, media_environment
from overlay_tools.errors import ServeError, UsageError
from overlay_tools.settings import Project
from overlay_tools.upstream.lockfile import get_release, load_lock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("version", nargs="?", metavar="VERSION", help=f"{LOCKED} (default: {DEFAULT})")
    parser.add_argument("--model", metavar="CHECKPOINT", help=f"{named.HELP} (default: {demo_model.NAME})")
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="picture to show a model that takes some (default: a red square)"
    )
    parser.add_argument("--port", type=_port, metavar="PORT", help="port to listen on (default: a free one)")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="serve until Ctrl-C (default: stop after the first answers)",
    )
    parser.add_argument(
        "--print",
        action="store_true",
        help="print what would be run, and run nothing (default: print it, then run it)",
    )
    add_timeout(parser)
    add_python(parser, "serve with")
    add_passed_on(parser, "of sglang.launch_server")


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Serve a model and ask it."""
    version, flags = arguments.version or project.default, arguments.passed_on
    get_release(load_lock(project.lock), version, project.lock)
    check_flags(flags, "--model CHECKPOINT")
    if arguments.model is not None:
        named.check_name(arguments.model)
    _check_image(arguments.model, arguments.image)
    if arguments.port is not None:
        check_free(arguments.port)
    device = choose_device()
    if arguments.print:
        python = engine_folder(project, version, arguments.python, gpu=device.gpu) / "bin" / "python"
        demo = demo_model.planned(project)
        model = named.planned(arguments.model) if arguments.model else demo.folder
        own = [] if arguments.model else demo.flags
        print(_server(arguments, python, model, [*own, *flags], device, project.root / ".nox" / "servers").for_a_shell)
        return
    console.line(f"The engine runs on {'a GPU' if device.gpu else 'the CPU'}: {device.why}.")
    with (
        open_engine(project, version, arguments.python, gpu=device.gpu) as python,
        own_folder(project.root / ".nox" / "servers") as folder,
    ):
        if arguments.model is None:
            demo = demo_model.prepare(project, python)
            model, flags = demo.folder, [*demo.flags, *flags]
            questions = Questions(prompt=demo.prompt, question=demo.question)
        else:
            model, questions = named.open_checkpoint(arguments.model, python, flags), Questions()
        _serve(arguments, _server(arguments, python, model, flags, device, folder), questions, folder)
    console.line("Stopped.")


def _server(
    arguments: argparse.Namespace,
    python: Path,
    model: Path,
    flags: Sequence[str],
    device: Device,
    folder: Path,
) -> Server:
    """Describe the server; upstream takes the last of a flag that is there twice, so a person's come last."""
    log = folder / "server.log"
    usual, environment = engine_config.usual(model, gpu=device.gpu)
    return Server(
        python,
        model,
        [*engine_config.flags(usual), *flags],
        env={**environment, **media_environment(folder / "pictures")},
        log=log,
        port=arguments.port,
        timeout=arguments.timeout,
        waiting=lambda seconds: console.line(f"  {seconds} s: {_last_line(log)}") if seconds % 5 == 0 else None,
        stopping=lambda: console.line("Stop the server"),
    )


def _serve(arguments: argparse.Namespace, server: Server, questions: Questions, folder: Path) -> None:
    console.line(f"Start sglang.launch_server on {server.model}")
    console.line(f"  {server.for_a_shell}")
    with server:
        console.line(f"Serving at {server.url}", style="green")
        ask(server, questions, folder / "pictures", arguments.image)
        if arguments.keep:
            console.line("Serving until Ctrl-C.")
            while True:
                server.check()
                time.sleep(1)


def _check_image(model: str | None, image: Path | None) -> None:
    """Refuse a picture that cannot be shown, as far as one sees, before anything is built."""
    if image is None:
        return
    if not image.is_file():
        raise ServeError(f"There is no file {image}.", hint="Name a picture with --image, or leave it out.")
    if model is None or named.takes_pictures(model) is False:
        raise UsageError(
            f"{image} cannot be shown: {model or demo_model.NAME} takes no pictures.",
            hint="Leave --image out, or name a model that takes pictures with --model.",
        )


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.strip()[:100] for line in reversed(lines) if line.strip()), "")


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text} is not a port, a number from 1 to 65535")
    return int(text)


COMMAND = Command(
    about="Builds a release's wheels, installs them with all that the release pins into an environment in .nox/engines,"
    " starts SGLang's server on a checkpoint, and asks it for a completion, a streamed chat and, where the model takes"
    " pictures, what one shows, or for the vectors of two texts. What follows a second -- goes to the server. With a"
    " CUDA GPU it runs there; without one, or where SGLANG_USE_CPU_ENGINE=1 or CUDA_VISIBLE_DEVICES= says so, on the"
    " CPU.",
    examples={
        "": "a small model on the default release",
        "0.5.17 --model ~/Qwen3-Next-Ext --port 30000 --keep": "your checkpoint, until Ctrl-C",
        "--model Qwen/Qwen3-0.6B": "one of the hub",
        "--model tests/data/qwen3-next-ext -- --speculative-algorithm NEXTN": "with arguments of upstream's",
    },
    add_arguments=add_arguments,
    run=run,
)
