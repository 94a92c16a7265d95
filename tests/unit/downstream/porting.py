"""What the tests of port share: the worktree, errors that change nothing, and releases that hold."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from overlay_tools.errors import OverlayError, PortError
from overlay_tools.patches.lint import lint
from overlay_tools.patches.series import load_series

from unit.conftest import Miniature


def worktree(mini: Miniature) -> Path:
    return mini.root / ".nox" / "porting" / "worktree"


def git(mini: Miniature, *words: str) -> str:
    who = ("-c", "user.name=me", "-c", "user.email=me@here")
    return subprocess.run(["git", *who, *words], cwd=worktree(mini), capture_output=True, text=True, check=True).stdout


def stopped(mini: Miniature, call: Callable[[], object], kind: type[OverlayError] = PortError) -> str:
    """Expect an error with a next step, and the checkout as it was."""
    before = mini.content()
    with pytest.raises(kind) as caught:
        call()
    assert mini.content() == before
    assert caught.value.hint
    return f"{caught.value}\n{caught.value.hint}"


def takes(mini: Miniature, version: str, hooks: Sequence[str]) -> None:
    """Expect a release to be locked with these hooks and no others, and its wheel to build."""
    series = load_series(mini.root / "patches")
    assert version in mini.lock
    assert lint(series, list(mini.lock)) == []
    assert [hook.name for hook in series if hook.variant(version)] == list(hooks)
    assert [patch.hook for patch in mini.build(version).patches] == list(hooks)
    assert not (mini.root / ".nox/porting").exists()
