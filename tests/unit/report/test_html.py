from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from overlay_tools.errors import OverlayError
from overlay_tools.report.html import render_page, write_page
from overlay_tools.report.model import Status

from unit.conftest import REPOSITORY, Miniature
from unit.report.examples import BAD, HOSTILE, RELEASES, status_of


class Elements(HTMLParser):
    """Lists the elements of a page, each with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def values(self, attribute: str) -> list[str]:
        """Return the values that an attribute has in all elements."""
        return [value for _, attributes in self.found if (value := attributes.get(attribute)) is not None]


@pytest.mark.parametrize("status", [status_of(), status_of(BAD)], ids=["green", "red"])
def test_the_page_takes_nothing_from_elsewhere(status: Status) -> None:
    page = render_page(status)
    elements = Elements(page)
    assert elements.values("src") == []
    assert [link for link in elements.values("href") if not link.startswith("#")] == ["data:,"]
    assert {tag for tag, _ in elements.found}.isdisjoint({"script", "img", "iframe", "object", "base", "form"})
    assert re.findall(r"url\(|@import", page) == []
    (policy,) = [attributes["content"] for _, attributes in elements.found if "http-equiv" in attributes]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@pytest.mark.parametrize("status", [status_of(), status_of(BAD)], ids=["green", "red"])
def test_every_link_leads_to_one_place_on_the_page(status: Status) -> None:
    elements = Elements(render_page(status))
    links = {link for link in elements.values("href") if link.startswith("#")}
    assert {link[1:] for link in links} <= set(elements.values("id"))
    assert len(elements.values("id")) == len(set(elements.values("id")))
    not_green = {release for release, *_ in BAD} if status.not_green else set()
    assert {f"#{release}" for release in RELEASES} & links == {f"#{release}" for release in not_green}


def test_text_is_escaped() -> None:
    page = render_page(status_of(BAD))
    assert HOSTILE not in page
    assert "skipped: &lt;script&gt;document.title=&#39;owned&#39;&lt;/script&gt;" in page
    assert "<script" not in page


def test_the_same_status_is_the_same_page(tmp_path: Path) -> None:
    assert render_page(status_of(BAD)) == render_page(status_of(BAD))
    assert render_page(status_of(BAD)) != render_page(status_of(BAD[1:]))
    write_page(status_of(), tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == render_page(status_of()).encode()


def test_what_to_run_is_said_where_something_is_not_green() -> None:
    assert "nox -s matrix" in render_page(status_of(BAD))
    assert "nox -s" not in render_page(status_of())


def test_a_checkout_outside_git_is_called_so() -> None:
    assert "outside a git checkout" in render_page(replace(status_of(), commit=""))


def test_pages_that_are_written_at_once_and_beside_a_build_are_whole(mini: Miniature) -> None:
    path = mini.root / "dist" / "status.html"
    codes = ("write_page(status_of(), path)", "write_page(status_of(BAD), path)")
    setup = (
        "from pathlib import Path; from overlay_tools.report.html import write_page; from unit.report.examples import *"
    )
    words = [f"{setup}\npath = Path({str(path)!r})\nfor _ in range(60): {code}" for code in codes]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(REPOSITORY / name) for name in ("ci", "tests"))}
    whole = {render_page(status).encode("utf-8", "backslashreplace") for status in (status_of(), status_of(BAD))}
    writers = [subprocess.Popen([sys.executable, "-c", code], env=environment) for code in words]
    while any(writer.poll() is None for writer in writers):
        mini.build()
        assert not path.exists() or path.read_bytes() in whole
    assert [writer.returncode for writer in writers] == [0, 0]
    assert not list(path.parent.glob("*.part"))


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


def test_a_page_does_not_take_the_place_of_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("here")
    (tmp_path / "link").symlink_to("file")
    for name, why in (("pipe", "a device or a pipe"), ("link", "a link")):
        with pytest.raises(OverlayError, match=f"{name} cannot be written: it is {why}"):
            write_page(status_of(), tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "here"
