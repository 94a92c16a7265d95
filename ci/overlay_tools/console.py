"""What a person sees: a step a line, a summary, errors on standard error."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from overlay_tools.errors import OverlayError

_out = Console(highlight=False, soft_wrap=True, emoji=False)
_err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
_verbose = False


def set_verbose(on: bool) -> None:
    """Show details from now on, or do not."""
    global _verbose
    _verbose = on


def open_streams() -> None:
    """Let any text be shown on any stream: what its encoding lacks is escaped, and what is closed shows nothing."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def give_up_output() -> int:
    """Show nothing any more, for no one reads it; return the exit status of a program that ends because of that."""
    _show_nothing()
    return 128 + signal.SIGPIPE


def drop_unwritten() -> None:
    """Drop what could not be written, as on a full disk: Python would try again when it ends, and complain itself."""
    try:
        sys.stdout.flush()
    except OSError:
        _show_nothing()


def _show_nothing() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def step(text: str) -> Iterator[None]:
    """Show a step, then how long it took once it is done."""
    _out.print(f"{text} ... ", end="\n" if _verbose else "", markup=False)
    started = time.perf_counter()
    try:
        yield
    except BaseException:
        _out.print("failed", style="red")
        raise
    _out.print(f"done ({time.perf_counter() - started:.2f} s)", style="green")


def line(text: str, style: str = "") -> None:
    """Show a line."""
    _out.print(text, style=style, markup=False)


def detail(text: str) -> None:
    """Show a line on standard error, if details are to be shown."""
    if _verbose:
        _err.print(text, style="dim", markup=False)


def table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Show a title and beneath it names with their values."""
    _out.print(title, style="bold", markup=False)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        _out.print(f"  {name:<{width}}  {value}", markup=False)


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Show rows beneath the heads of their columns."""
    widths = [max(len(row[n]) for row in [heads, *rows]) for n in range(len(heads))]
    for number, row in enumerate([heads, *rows]):
        text = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        _out.print(f"  {text}", style="bold" if number == 0 else "", markup=False)


def fail(error: OverlayError) -> None:
    """Show an error: each problem on its line, then the next step."""
    for problem in error.problems:
        _err.print("error: ", style="bold red", end="")
        _err.print(problem, markup=False)
    if error.hint:
        _err.print(f"  {error.hint}", markup=False)
