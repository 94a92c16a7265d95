"""Options that several commands take; what an engine needs is in `shared`, and takes long to import."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from overlay_tools.commands import PASSED_ON
from overlay_tools.errors import UsageError
from overlay_tools.report.html import check_place
from overlay_tools.upstream.lockfile import PYTHONS, THIS_PYTHON


def add_python(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add `--python`, the minor version of CPython to do something with."""
    parser.add_argument(
        "--python", choices=PYTHONS, help=f"CPython to {purpose} (default: the one that runs this, {THIS_PYTHON})"
    )


def add_index(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add `--index`, the package index `purpose`."""
    parser.add_argument(
        "--index",
        metavar="URL",
        help=f"the package index {purpose} (default: the one that uv and pip are configured for)",
    )


def add_passed_on(parser: argparse.ArgumentParser, of: str) -> None:
    """Add `passed_on`, the words after a `--`, which are arguments `of` another program."""
    parser.add_argument(PASSED_ON, nargs="*", metavar="-- ARGUMENT", help=f"after --, arguments {of}")


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """Add `--timeout`, the seconds that a server may take to come up."""
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=600.0,
        metavar="SECONDS",
        help="how long a server may take to come up (default: 600)",
    )


def check_places(writes: Mapping[str, Path | None], reads: Sequence[str | Path | None] = ()) -> None:
    """Raise an OverlayError if the file that an option names cannot be written, or two options name one.

    Parameters: `writes`, by the options; `reads`, what may be a file that is read, and must stay.
    """
    seen: dict[Path, str] = {}
    for option, path in writes.items():
        if path is None:
            continue
        check_place(path, option)
        if (other := seen.setdefault(path.resolve(), option)) != option:
            raise UsageError(f"{other} and {option} both name {path}.", hint="Name two files.")
        for name in reads:
            if name is not None and path.exists() and Path(name).exists() and path.samefile(name):
                raise UsageError(f"{name} is read, and {option} would overwrite it.", hint="Name another file.")


def remove_outputs(*paths: Path | None) -> None:
    """Remove the files that are to be written: after an error, what an earlier run found would pass for this one's."""
    for path in paths:
        if path is not None:
            path.unlink(missing_ok=True)


def ask(question: str) -> str:
    """Return what a person answers on the terminal, "" where it is closed (Ctrl-D)."""
    try:
        return input(question).strip()
    except EOFError:
        print()  # what is said next is on a line of its own
        return ""


def count(text: str) -> int:
    """Read a number from 1 on. Raises ArgumentTypeError if a word of the command line is none."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds
