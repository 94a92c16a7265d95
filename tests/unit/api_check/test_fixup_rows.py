from __future__ import annotations

import textwrap

import pytest
from overlay_tools.errors import ContractError

from unit.api_check.derived import changed, check, misfits
from unit.conftest import Miniature

FIXUPS = """\
    def _replace(releases, module, symbol, replace): ...
    def _edit(releases, module, symbol, old, new): ...

    _LAYERS = "sglang.srt.layers"

    FIXUPS: tuple = (
        _replace("<1.1", f"{_LAYERS}.router", "Router.bind", lambda original: original),
        _edit("", f"{_LAYERS}.head", "make_head", "return object()", "return None"),
        *(
            _replace(releases, module, name, None)
            for releases, module, name in ((">=1.0", f"{_LAYERS}.head", "SCALE"),)
        ),
    )
    """


@pytest.mark.parametrize(
    ("upstream", "expected"),
    [
        ({}, []),
        (
            changed("def bind", "def tie", "sglang/srt/layers/router.py"),
            ["row sglang.srt.layers.router:Router.bind: sglang.srt.layers.router has no `Router.bind`"],
        ),
        (
            changed("return object()", "return 1", "sglang/srt/layers/head.py"),
            ["row sglang.srt.layers.head:make_head: 'return object()' is in sglang.srt.layers.head 0 times, not once"],
        ),
        (
            changed("SCALE = 1", "", "sglang/srt/layers/head.py"),
            ["row sglang.srt.layers.head:SCALE: sglang.srt.layers.head has no `SCALE`"],
        ),
        (changed("SCALE = 1", "from sglang.srt.version import SCALE", "sglang/srt/layers/head.py"), []),
    ],
)
def test_what_the_fixups_change_must_be_there(ours: Miniature, upstream: dict[str, str], expected: list[str]) -> None:
    ours.write("overlay/sgl_kernel/fixups.py", textwrap.dedent(FIXUPS))
    assert [text for text in misfits(check(ours, upstream)) if text.startswith("row")] == expected


def test_a_row_that_cannot_be_read_is_named_with_its_line(ours: Miniature) -> None:
    ours.write("overlay/sgl_kernel/fixups.py", textwrap.dedent(FIXUPS).replace("*(", "*more, *("))
    with pytest.raises(ContractError, match=r"fixups\.py:9: this row of FIXUPS cannot be read"):
        check(ours)


def test_a_row_for_other_releases_is_not_checked(ours: Miniature) -> None:
    ours.write("overlay/sgl_kernel/fixups.py", textwrap.dedent(FIXUPS))
    renamed = changed("def bind", "def tie", "sglang/srt/layers/router.py")
    assert [text for text in misfits(check(ours, renamed, version="1.1")) if text.startswith("row")] == []
