"""How the tool's messages read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import overlay_tools
import pytest
from overlay_tools.errors import REPORT

SOURCES = sorted(Path(overlay_tools.__file__).parent.rglob("*.py"))
# A reader stumbles over "/etc is no Python"; not over "there is no such file" or "is no longer".
STILTED = re.compile(r"(?<!there )\b(?:is|are|knows) (?:no|none)\b(?! longer)", re.IGNORECASE)


def messages(path: Path) -> Iterator[str]:
    """Yield each string of a module but its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docs:
            yield node.value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_message_makes_a_reader_stumble(path: Path) -> None:
    assert [text for text in messages(path) if STILTED.search(text)] == []


def test_a_fault_of_the_tool_says_whom_to_tell_what() -> None:
    assert "open an issue" in REPORT
    assert "--verbose" in REPORT
