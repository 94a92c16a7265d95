from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from playwright.sync_api import Browser

from browser.browser import NoBrowserError, start_browser


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start a browser for all tests, or end the run if none starts: no test could pass."""
    with ExitStack() as stack:
        try:
            started = stack.enter_context(start_browser())
        except NoBrowserError as error:
            pytest.exit(str(error), returncode=1)
        yield started
