"""A browser for the tests: the machine's own, or else the one that playwright installs when this file is run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

ARGUMENTS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
]


def find_browser() -> str | None:
    """Return the path of the machine's browser, if it has one; a snap is none, for it cannot see a test's files."""
    found = (shutil.which(name) for name in ("google-chrome", "google-chrome-stable", "chromium", "chromium-browser"))
    return next((path for path in found if path and "/snap/" not in path), None)


@contextmanager
def start_browser() -> Iterator[Browser]:
    """Start a browser; raises playwright's error, which says what to install, if there is none."""
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses to run as root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=[*ARGUMENTS, *as_root])
        yield browser
        browser.close()


if __name__ == "__main__" and find_browser() is None:
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium-headless-shell"], check=True)
