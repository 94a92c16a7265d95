from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from overlay_tools.errors import OverlayError
from overlay_tools.report.html import page, write_page

from unit.report.examples import BAD, status_of


def test_the_same_status_is_the_same_page(tmp_path: Path) -> None:
    assert page(status_of(BAD)) == page(status_of(BAD))
    assert page(status_of(BAD)) != page(status_of(BAD[1:]))
    write_page(status_of(), tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == page(status_of()).encode()


def test_a_checkout_outside_git_is_called_so() -> None:
    assert "in no git checkout" in page(replace(status_of(), commit=""))


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "file").write_text("here")
    for path in (folder, tmp_path / "file" / "status.html"):
        with pytest.raises(OverlayError, match=re.escape(str(path))) as caught:
            write_page(status_of(), path)
        assert "--html" in caught.value.hint
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "here"
