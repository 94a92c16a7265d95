from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench-port", "what test_relocation.py carries to another release")
    group.addoption("--from", default="0.5.16", metavar="VERSION", help="the release that insertions are made up for")
    group.addoption("--to", metavar="VERSION", help="the release that they go to (default: the newest)")
    group.addoption("--insertions", type=int, default=240, metavar="N", help="how many (default: 240)")
