"""What upstream's own files take from a file that the overlay replaces."""

from __future__ import annotations

import pytest

from unit.api_check.derived import check, misfits
from unit.conftest import Miniature

SCHED = "sglang/srt/sched.py"
THEIRS = {SCHED: "THEIRS = 1\nSHARED = 2\n"}
LACKS = "import sglang/srt/user.py: sglang.srt.sched.THEIRS: upstream's file needs it, and the overlay's lacks it"


@pytest.fixture
def ours(ours: Miniature) -> Miniature:
    """Return a project that replaces a file of upstream's with one that has not all of its names."""
    text = (ours.root / "pyproject.toml").read_text()
    ours.write("pyproject.toml", text.replace("replaces = []", f'replaces = ["{SCHED}"]'))
    ours.write(f"overlay/{SCHED}", "SHARED = 2\n")
    return ours


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from sglang.srt.sched import SHARED, THEIRS\n", [LACKS]),
        ("from .sched import THEIRS\n", [LACKS]),
        ("def f():\n    from sglang.srt import sched\n    return sched.THEIRS + sched.THEIRS\n", [LACKS]),
        ("import sglang.srt.sched as s\ns.SHARED\ns.THEIRS\n", [LACKS]),
        ("from sglang.srt.sched import SHARED\n", []),
        ("from sglang.srt.sched import *\n", []),
        ("try:\n    from sglang.srt.sched import THEIRS\nexcept ImportError:\n    THEIRS = 1\n", []),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .sched import THEIRS\n", []),
        ("from sglang.srt.sched import SHARED\nfrom sglang.srt.gone import OTHER\n", []),
    ],
)
def test_a_name_that_upstream_takes_and_ours_lacks_is_said(ours: Miniature, text: str, expected: list[str]) -> None:
    found = check(ours, {**THEIRS, "sglang/srt/user.py": text})
    assert misfits(found) == expected
    assert {item.where for item in found if item.problem} <= {f"overlay/{SCHED}"}


def test_a_file_that_is_replaced_as_well_takes_nothing(ours: Miniature) -> None:
    user = "sglang/srt/user.py"
    ours.write(f"overlay/{user}", "")
    text = (ours.root / "pyproject.toml").read_text()
    ours.write("pyproject.toml", text.replace(f'["{SCHED}"]', f'["{SCHED}", "{user}"]'))
    assert misfits(check(ours, {**THEIRS, user: "from sglang.srt.sched import THEIRS\n"})) == []


def test_a_release_that_does_not_take_ours_has_all_names(ours: Miniature) -> None:
    ours.limit({SCHED: ">=1.1"})
    upstream = {**THEIRS, "sglang/srt/user.py": "from sglang.srt.sched import THEIRS\n"}
    assert misfits(check(ours, upstream)) == []
    assert misfits(check(ours, upstream, "1.1")) == [LACKS]
