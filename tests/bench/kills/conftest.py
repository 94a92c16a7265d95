from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench-kills", "what a kill leaves behind")
    group.addoption("--moments", type=int, default=30, metavar="N", help="moments of each command (default: 30)")
    group.addoption("--servers", type=int, default=6, metavar="N", help="moments of a real server (default: 6)")
