"""Build, install and serve a model, and ask it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from overlay_tools import console
from overlay_tools.checkout import own_folder
from overlay_tools.checkpoints.demo_model import make_demo_model
from overlay_tools.commands import DEFAULT, LOCKED, Command
from overlay_tools.commands.shared import add_python, open_engine
from overlay_tools.engines import engine_config
from overlay_tools.engines.device import Device, choose_device
from overlay_tools.engines.server import Server, check_free
from overlay_tools.engines.smoke import ask, media_environment, takes_pictures
from overlay_tools.errors import ServeError, UsageError
from overlay_tools.settings import Project


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("version", nargs="?", metavar="VERSION", help=f"{LOCKED} (default: {DEFAULT})")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FOLDER",
        help="checkpoint to serve (default: a tiny one with random weights, made here)",
    )
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
        "--timeout",
        type=_seconds,
        default=600.0,
        metavar="SECONDS",
        help="how long the server may take to come up (default: 600)",
    )
    add_python(parser, "serve with")


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Serve a model and ask it."""
    _check_model(arguments.model, arguments.image)
    if arguments.port is not None:
        check_free(arguments.port)
    device = choose_device()
    console.line(f"The engine runs on {'a GPU' if device.gpu else 'the CPU'}: {device.why}.")
    with (
        open_engine(project, arguments.version or project.default, arguments.python, gpu=device.gpu) as python,
        own_folder(project.root / ".nox" / "servers") as folder,
    ):
        _serve(project, arguments, python, device, folder)
    console.line("Stopped.")


def _serve(project: Project, arguments: argparse.Namespace, python: Path, device: Device, folder: Path) -> None:
    model = arguments.model or make_demo_model(project.root, python)
    log, pictures = folder / "server.log", folder / "pictures"
    server = Server(
        python,
        model,
        [] if device.gpu else engine_config.flags(engine_config.ARGS),
        env={**({} if device.gpu else engine_config.ENV), **media_environment(pictures)},
        log=log,
        port=arguments.port,
        timeout=arguments.timeout,
        waiting=lambda seconds: console.line(f"  {seconds} s: {_last_line(log)}") if seconds % 5 == 0 else None,
        stopping=lambda: console.line("Stop the server"),
    )
    console.line(f"Start sglang.launch_server on {model}")
    with server:
        console.line(f"Serving at {server.url}", style="green")
        ask(server, pictures, arguments.image)
        if arguments.keep:
            console.line("Serving until Ctrl-C.")
            while True:
                server.check()
                time.sleep(1)


def _check_model(model: Path | None, image: Path | None) -> None:
    """Refuse what cannot be served or shown before anything is built."""
    if model is not None and not (model / "config.json").is_file():
        raise ServeError(f"{model} is not a checkpoint: it has no config.json.", hint="Name a folder with --model.")
    if image is not None and not image.is_file():
        raise ServeError(f"There is no file {image}.", hint="Name a picture with --image, or leave it out.")
    pictures = model is not None and takes_pictures(model)
    if image is not None and not pictures:
        raise UsageError(
            f"{image} cannot be shown: {model or 'the tiny model that is served by default'} takes no pictures.",
            hint="Leave --image out, or name a model that takes pictures with --model.",
        )


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.strip()[:100] for line in reversed(lines) if line.strip()), "")


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text} is not a port, a number from 1 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds


COMMAND = Command(
    about="Builds a release's wheels, installs them with all that the release pins into an environment in .nox/engines,"
    " starts SGLang's server on a checkpoint, asks it for a completion, a streamed chat and, where the model takes"
    " pictures, what one shows. With a CUDA GPU the server runs on it; without, or where SGLANG_USE_CPU_ENGINE=1 or"
    " CUDA_VISIBLE_DEVICES= says so, on the CPU.",
    examples={
        "": "a tiny model on the default release",
        "0.5.17 --model ~/Qwen3-Next-Ext --port 30000 --keep": "your checkpoint, until Ctrl-C",
    },
    add_arguments=add_arguments,
    run=run,
)
