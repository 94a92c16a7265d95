"""The command line: its parsers, and `main`, which imports the module of a command once that command is asked for."""

from __future__ import annotations

import argparse
import importlib
import keyword
import os
import sys
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from overlay_tools import __version__
from overlay_tools.commands import PASSED_ON, Command
from overlay_tools.errors import OverlayError, UsageError
from overlay_tools.surroundings import set_aside

# Each command, for what it is there. Its module in `commands` is what `module_name` makes of its name.
COMMANDS = {
    "build": "build the drop-in wheel of a release, and its CPU kernel wheel, into dist/",
    "plugin": "build the plugin wheel, which brings the models to an unmodified SGLang",
    "verify": "compare a wheel, or what an environment has of it, with its manifest",
    "sign": "sign wheels of dist/ with a key",
    "serve": "build, install and serve a model, and ask it a few questions",
    "compare": "compare what a checkpoint answers with what Transformers computes",
    "accuracy": "measure how well a checkpoint does on tasks, beside Transformers",
    "bench": "measure how fast a checkpoint is served, beside Transformers",
    "tune": "find tiles of the fused MoE kernel for a checkpoint's shape, on a CUDA GPU",
    "new": "start a model of your own: its files, green as they are",
    "adopt": "make a Qwen3-Next-Ext checkpoint of a stock Qwen3-Next one",
    "edit": "open a release as a git repository, one commit for each hook",
    "export": "write a worktree's commits back to patches/ and overlay/",
    "port": "carry the overlay to a release that is not locked yet, and lock it",
    "import": "bring in patches or a fork: changed files as hooks, new ones to overlay/",
    "lock": "pin a release in upstream.lock, or compare the lock with the index",
    "matrix": "run every stage of every release that is not proven yet",
    "watch": "carry the overlay to new releases and prove it: a branch or a report each",
    "changes": "show what one release has otherwise than another, for the overlay",
    "status": "show what is known of every release, here and as dist/status.html",
    "test-engine": "run the engine tests of one release in its environment",
    "lint-patches": "check patches/",
    "bench-gpu": "measure kernels, overhead and speed on a CUDA GPU",
}
# What people run as sessions of nox with other names, or as parts of some.
_NO_SESSION = ("test-engine", "lint-patches")
_ABOUT = """\
Builds, verifies, serves and tests sglang-overlay: an SGLang with models of its own, grafted onto upstream's wheels."""
_EPILOG = """\
Most commands are sessions of nox too, which install what they need; arguments follow `--`:

  nox -l                                   list the sessions
  nox -s build -- 0.5.17 --python 3.12     the command `build`, with arguments
  nox -s build -- --help                   what a command does, what it takes, examples
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    if argv is None:
        set_aside(os.environ)
    words = list(sys.argv[1:] if argv is None else argv)
    # Options before the command take no value, so the first other word is the command; the rest is for its own parser.
    at = next((n for n, word in enumerate(words) if not word.startswith("-")), len(words))
    chosen = _parser().parse_args(words[: at + 1])
    command = load_command(chosen.command)
    arguments = command_parser(chosen.command, command).parse_intermixed_args(words[at + 1 :])
    return _run(command, arguments, verbose=chosen.verbose or arguments.verbose)


def _run(command: Command, arguments: argparse.Namespace, *, verbose: bool) -> int:
    from overlay_tools import checkout, console, settings, user_files
    from overlay_tools.interruption import Interruption

    console.open_streams()
    console.set_verbose(verbose)
    interruption = Interruption()
    try:
        project = settings.load_project(_here())
        checkout.check_line_ends(project.root)
        return int(command.run(project, arguments) or 0)
    except OverlayError as error:
        console.fail(error)
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:
        return console.give_up_output()
    except (OSError, UnicodeError) as error:
        console.detail(traceback.format_exc())
        console.fail(user_files.describe(error))
        console.drop_unwritten()
        return 1
    except KeyboardInterrupt:
        console.fail(OverlayError(f"Interrupted by {interruption.number.name}."))
        return 128 + interruption.number


def _here() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise OverlayError(
            "The folder that this runs in no longer exists.", hint="Run this in a checkout of sglang-overlay."
        ) from None


def load_command(name: str) -> Command:
    """Import the module of a command and return what it declares."""
    command: Command = importlib.import_module(f"overlay_tools.commands.{module_name(name)}").COMMAND
    return command


def module_name(name: str) -> str:
    """Return the name of a command's module."""
    return f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")


def command_parser(name: str, command: Command) -> argparse.ArgumentParser:
    """Return the parser of a command's own arguments; its usage is that of the nox session, where there is one."""
    called = f"overlay-tools {name}" if name in _NO_SESSION else f"nox -s {name} --"
    lines = [
        (f"{called} {words}" if words else called.removesuffix(" --"), why) for words, why in command.examples.items()
    ]
    examples = "".join(f"  {line}\n      {why}\n" for line, why in lines)
    parser = _Parser(
        prog=called,
        description=textwrap.fill(command.about, 80),
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    _add_verbose(parser)
    return parser


def _parser() -> argparse.ArgumentParser:
    commands = "".join(f"  {name:<14}{summary}\n" for name, summary in COMMANDS.items())
    parser = _Parser(
        prog="overlay-tools",
        usage="overlay-tools [--help] [--version] [--verbose] COMMAND ...",
        description=textwrap.fill(_ABOUT, 80),
        epilog=f"commands:\n{commands}\n{_EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sglang-overlay-tools {__version__}")
    _add_verbose(parser)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    return parser


def _add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="show on standard error each program that is called, its arguments, its exit status and how long it took"
        " (default: no)",
    )


class _Parser(argparse.ArgumentParser):
    """A parser that says where the help is when it refuses something, and refuses an option that is given twice.

    What follows a `--` is for another program where an argument `passed_on` is declared: it may begin with hyphens.
    """

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(**settings)
        self.register("action", None, _Once)
        self.register("action", "store", _Once)

    def parse_intermixed_args(  # type: ignore[override]
        self, args: Sequence[str], namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse words, and keep those after a `--` for another program as they are."""
        if not any(action.dest == PASSED_ON for action in self._actions):
            return super().parse_intermixed_args(args, namespace)
        own = list(args[: args.index("--")] if "--" in args else args)
        parsed = super().parse_intermixed_args(own, namespace)
        if surplus := getattr(parsed, PASSED_ON):
            self.error(f"unrecognized arguments: {' '.join(surplus)}")
        setattr(parsed, PASSED_ON, list(args[len(own) + 1 :]))
        return parsed

    def error(self, message: str) -> NoReturn:
        """Show the usage, what is wrong, and the next step; exit with status 2."""
        self.exit(2, f"{self.format_usage()}error: {message}\n  `{self.prog} --help` says what there is.\n")


class _Once(argparse.Action):
    """Stores the value of an option; a second one would take the place of the first without a word."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        if option_string and getattr(namespace, self.dest) is not self.default:
            raise argparse.ArgumentError(self, "it is given twice")
        setattr(namespace, self.dest, values)
