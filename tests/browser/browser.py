"""A browser for the tests: the machine's own, or else one that playwright downloads when this file is run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Error, sync_playwright

NAMES = ("google-chrome", "google-chrome-stable", "chromium", "chromium-browser")
ARGUMENTS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
]
NEXT_STEP = "Install Chrome or Chromium (on Debian: apt-get install chromium), then run `nox -s test-page` again."


class NoBrowserError(Exception):
    """Report that no browser starts, and what to do about it."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}\n  {NEXT_STEP}")


def find_browser() -> str | None:
    """Return the path of the machine's browser, if it has one other than a snap, which cannot read a test's files."""
    found = (shutil.which(name) for name in NAMES)
    return next((path for path in found if path and "/snap/" not in path), None)


def download_browser() -> None:
    """Download playwright's own browser, unless it is there already.

    Raises NoBrowserError if it cannot be downloaded.
    """
    command = [sys.executable, "-m", "playwright", "install", "chromium-headless-shell"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        reason = next((line for line in done.stdout.splitlines() if line.startswith("Error: ")), done.stdout.strip())
        raise NoBrowserError(
            "There is no browser on this machine, and playwright could not download one: "
            f"{reason.removeprefix('Error: ')}."
        )


@contextmanager
def start_browser() -> Iterator[Browser]:
    """Start a browser.

    Raises NoBrowserError if there is none, or if it does not start.
    """
    path = find_browser()
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses to run as root
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS, *as_root])
        except Error as error:
            which = path or "The browser that playwright downloads"
            raise NoBrowserError(f"{which} does not start: {_reason(error)}.") from None
        yield browser
        browser.close()


def _reason(error: Error) -> str:
    """Return the first line of an error's message: some are in a box, others have a log behind them."""
    lines = [line.strip(" ║╔═╗╚╝") for line in error.message.removeprefix("BrowserType.launch:").splitlines()]
    return next((line.rstrip(".") for line in lines if line), "no reason is given")


def main() -> None:
    """Make sure that a browser starts, and download one first if the machine has none."""
    try:
        if find_browser() is None:
            print("This machine has no browser: download one", flush=True)
            download_browser()
        with start_browser():
            pass
    except NoBrowserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
