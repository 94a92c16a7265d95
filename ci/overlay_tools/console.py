"""What a person sees: a step a line, a summary, errors on standard error."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import rich.console
from rich.control import Control
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import ControlType

from overlay_tools.errors import OverlayError


class Console(rich.console.Console):
    """A console that lets the program say how it ends where no one reads it: rich would end it, with status 1."""

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError that was caught."""
        raise  # rich calls this where it has caught it


_out = Console(highlight=False, soft_wrap=True, emoji=False)
_err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
_verbose = False
_NOW_AND_THEN = 30.0  # seconds between two lines that say how far a step is
_END = 4096  # bytes of a log, in which its last bar is


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


class _Step:
    """A step that is shown, and how far it is: in a bar on a terminal, elsewhere in a line now and then."""

    def __init__(self, text: str) -> None:
        self.text, self.on_terminal = text, _out.is_interactive and not _verbose
        self.started = self.told = time.perf_counter()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        left = TimeRemainingColumn(elapsed_when_finished=True)
        # How long a step takes is not to be told by the last 30 seconds alone, in which it may have done nothing.
        self.bar = Progress(
            *columns, left, console=_out, transient=True, disable=not self.on_terminal, speed_estimate_period=3600
        )
        self.show_text()

    def show_text(self) -> None:
        _out.print(f"{self.text} ... ", end="\n" if _verbose else "", markup=False)

    def progress(self, done: int, total: int) -> None:
        if not self.bar.tasks:
            self.bar.add_task(self.text, total=total)
            _out.control(Control(ControlType.CARRIAGE_RETURN))  # the bar takes the place of the text; nothing elsewhere
            self.bar.start()
        [task] = self.bar.tasks
        self.bar.update(task.id, completed=done, total=total)
        if not self.on_terminal and done < total and time.perf_counter() - self.told > _NOW_AND_THEN:
            seconds = task.time_remaining
            left = "" if seconds is None else f", about {timedelta(seconds=round(seconds))} left"
            _out.print(f"{done} of {total}{left} ... ", markup=False)
            self.told = time.perf_counter()

    def end(self, outcome: str, style: str) -> None:
        self.bar.stop()
        if self.bar.tasks and self.on_terminal:
            self.show_text()
        _out.print(outcome, style=style)


_steps: list[_Step] = []


@contextmanager
def step(text: str) -> Iterator[None]:
    """Show a step, then how long it took once it is done; `progress` shows how far it is."""
    _steps.append(_Step(text))
    try:
        yield
    except BaseException:
        _steps.pop().end("failed", "red")
        raise
    ended = _steps.pop()
    ended.end(f"done ({time.perf_counter() - ended.started:.2f} s)", "green")


def progress(done: int, total: int) -> None:
    """Show how far the step is that runs, if one does, and how long it will take from here."""
    if _steps:
        _steps[-1].progress(done, total)


def follow(log: Path, start: int = 0) -> None:
    """Show how far the step is that runs by what a program writes to a file: by the last bar of tqdm's in it.

    Parameters: `start`, from which byte on.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - _END))
            bars = re.findall(rb"(\d+)/(\d+) \[", file.read())
    except OSError:
        return
    if bars and int(bars[-1][1]):
        progress(int(bars[-1][0]), int(bars[-1][1]))


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
