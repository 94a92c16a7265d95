from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench-port", "how much is carried to other releases")
    group.addoption("--seed", type=int, default=1, metavar="N", help="what is drawn at random (default: 1)")
    group.addoption("--changes", type=int, default=1800, metavar="N", help="changes of upstream's own (default: 1800)")
    group.addoption("--from", default="0.5.16", metavar="VERSION", help="the release that insertions are made up for")
    group.addoption("--to", metavar="VERSION", help="the release that they go to (default: the newest)")
    group.addoption("--insertions", type=int, default=240, metavar="N", help="how many (default: 240)")
