from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench-port", "how much is carried to other releases")
    group.addoption("--seed", type=int, default=1, metavar="N", help="what is drawn at random (default: 1)")
    group.addoption("--changes", type=int, default=1800, metavar="N", help="changes of upstream's own (default: 1800)")
    group.addoption("--insertions", type=int, default=3000, metavar="N", help="made-up insertions (default: 3000)")
    group.addoption(
        "--pair", action="append", metavar="OLD:NEW", help="the releases that insertions go from and to (default: five)"
    )
    group.addoption("--diffs", type=int, default=6000, metavar="N", help="small diffs at random (default: 6000)")
    group.addoption("--hooks", type=int, default=70, metavar="N", help="hooks of the made-up series (default: 70)")
    group.addoption("--fork", type=Path, metavar="WHEEL", help="the fork's wheel (default: from the package index)")
