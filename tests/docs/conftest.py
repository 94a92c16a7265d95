"""Two processes share the pages: the blocks of a page run in their order, for one takes what another has made."""

from __future__ import annotations

import re

import pytest
from xdist.scheduler import LoadScopeScheduling


class PageScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives the blocks of a page to one process, and so the tests of a file that is about no page."""

    def _split_scope(self, nodeid: str) -> str:
        page = re.search(r"\[(\S+\.md):\d+\]$", nodeid)
        return page[1] if page else nodeid.partition("::")[0]


@pytest.hookimpl
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> PageScheduling:
    """Let xdist share out pages."""
    return PageScheduling(config, log)
