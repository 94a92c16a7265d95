"""The status page, as a browser shows it to a reader."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from overlay_tools.report.html import write_page
from overlay_tools.report.model import Cell, State, Status
from playwright.sync_api import Browser, Page
from unit.report.examples import BAD, HOSTILE, RELEASES, STAGES, status_of

# Each element's text, and its contrast with what is behind it, as WCAG 2 counts it.
CONTRAST = """elements => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                           return canvas.getImageData(0, 0, 1, 1).data; };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  return elements.map(element => {
    let behind = element;
    while (rgba(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
    const both = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(rgba).map(light);
    return [element.innerText, (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05)];
  });
}"""
TEXTS = (
    "h1, h2, h3, header p, .totals a, .totals b, .chips li > *, .legend li, .sign, caption span, th, .word, .word a,"
    " .notes, summary, dt, dd"
)


@dataclass
class Visit:
    """A page that is open, with all that it asked for and complained of."""

    page: Page
    url: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@contextmanager
def visit(
    browser: Browser, folder: Path, status: Status, *, width: int = 1400, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Visit]:
    path = folder / "status of all.html"
    write_page(status, path)
    with browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme) as context:
        shown = Visit(page=context.new_page(), url=path.as_uri())
        shown.page.on("request", lambda request: shown.requests.append(request.url))
        shown.page.on("console", lambda message: shown.complaints.append(message.text))
        shown.page.on("pageerror", lambda error: shown.complaints.append(str(error)))
        shown.page.goto(shown.url)
        yield shown


def test_a_reader_sees_the_verdict_and_every_cell(browser: Browser, tmp_path: Path) -> None:
    with visit(browser, tmp_path, status_of()) as shown:
        page = shown.page
        assert page.title() == "3 of 3 releases green · sglang-overlay"
        assert page.get_by_role("heading", level=1).inner_text() == "✓ 3 of 3 releases green"
        assert "at commit 895de74d1234+" in page.locator("header").inner_text()
        assert page.get_by_role("heading", name="What is not green").count() == 0
        for name, columns, said in (
            ("Hooks", ("register", "resolve"), "✓ offset +12 +2/-0 · line 107"),
            ("Stages", STAGES, "✓ 38 passed 12 s · 2026-11-23 · 895de74+"),
            ("Contract and base mentions", ("contract", "base mentions"), "✓ 170 fit 3 waived"),
        ):
            region = page.get_by_role("region", name=name, exact=True)
            assert region.get_by_role("columnheader").all_inner_texts() == ["Release", *columns]
            assert region.get_by_role("rowheader").all_inner_texts() == ["0.5.7", "0.5.10.post1", "0.5.23 default"]
            assert region.locator("caption").inner_text() == f"What of {name}?"
            cells = region.get_by_role("cell").all()
            assert [" ".join(cell.inner_text().split()) for cell in cells] == [said] * len(columns) * len(RELEASES)
            assert all(cell.is_visible() for cell in cells)
        assert shown.complaints == []
        assert shown.requests == [shown.url]


def test_what_a_figure_counts_unfolds(browser: Browser, tmp_path: Path) -> None:
    with visit(browser, tmp_path, status_of()) as shown:
        name = shown.page.get_by_text("base mentions by name").first
        assert not name.is_visible()
        shown.page.get_by_role("region", name="Contract and base mentions").locator("summary").nth(1).click()
        assert name.is_visible()


def test_each_cell_that_is_not_green_leads_to_its_reason(browser: Browser, tmp_path: Path) -> None:
    with visit(browser, tmp_path, status_of(BAD)) as shown:
        page = shown.page
        assert page.get_by_role("heading", level=1).inner_text() == "✗ 1 of 3 releases green, 2 red"
        totals = [text.split("\n") for text in page.locator(".totals li").all_inner_texts()]
        assert totals == [["✗ 2 of 3", "Hooks"], ["✗ 2 of 3", "Stages"], ["✗ 2 of 3", "Contract and base mentions"]]
        assert page.locator(".chips li").all_inner_texts() == ["✗ 0.5.7", "✗ 0.5.10.post1", "✓ 0.5.23"]
        for release, table, column, cell in BAD:
            link = page.get_by_role("region", name=table, exact=True).get_by_role("link", name=cell.word)
            assert link.inner_text() == f"{cell.state.value} {cell.word}"
            link.click()
            target = page.locator(":target")
            assert target.inner_text() == f"{cell.state.value} {column}: {cell.word}"
            assert target.evaluate("element => element.getBoundingClientRect().top < innerHeight")
            assert page.locator("article", has=target).get_by_role("heading").inner_text() == f"sglang {release}"
        for link in page.locator(".totals a, .chips a").all():
            link.click()
            assert page.locator(":target").is_visible()


def test_text_is_never_markup(browser: Browser, tmp_path: Path) -> None:
    with visit(browser, tmp_path, status_of(BAD)) as shown:
        assert shown.page.title() == "1 of 3 releases green, 2 red · sglang-overlay"
        assert shown.page.locator("script, img").count() == 0
        assert shown.page.get_by_text(HOSTILE.replace("\udce9", "\\udce9")).is_visible()
        assert shown.complaints == []
        assert shown.requests == [shown.url]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_light_and_dark(browser: Browser, tmp_path: Path, scheme: Literal["light", "dark"]) -> None:
    neutral = ("0.5.23", "Hooks", "resolve", Cell(state=State.NEUTRAL, word="not due"))
    with visit(browser, tmp_path, status_of((*BAD, neutral)), scheme=scheme) as shown:
        background = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
        shade = sum(int(part) for part in re.findall(r"\d+", background)[:3]) / 3
        assert shade < 40 if scheme == "dark" else shade > 235
        found = shown.page.locator(TEXTS).evaluate_all(CONTRAST)
        assert {"✗ fails", "○ skipped for 1 reason", "– not due", "✓ 38 passed"} <= {text for text, _ in found}
        assert [(text, contrast) for text, contrast in found if contrast < 4.5] == []


def test_a_narrow_screen_scrolls_the_tables_and_not_the_page(browser: Browser, tmp_path: Path) -> None:
    with visit(browser, tmp_path, status_of(BAD), width=400) as shown:
        page = shown.page
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        region = page.get_by_role("region", name="Stages", exact=True)
        assert region.evaluate("box => box.scrollWidth > box.clientWidth")
        header, cell = region.get_by_role("rowheader").first, region.get_by_role("cell").first
        where = "element => element.getBoundingClientRect().x"
        before = header.evaluate(where), cell.evaluate(where)
        region.evaluate("box => box.scrollLeft = 300")
        assert (header.evaluate(where), cell.evaluate(where)) == (before[0], before[1] - 300)
        header.scroll_into_view_if_needed()
        assert header.evaluate(  # nothing covers it
            "element => { const box = element.getBoundingClientRect();"
            " return document.elementFromPoint(box.right - 5, box.top + 5) === element; }"
        )


def test_the_page_is_a_document_that_can_be_read_aloud(browser: Browser, tmp_path: Path) -> None:
    with visit(browser, tmp_path, status_of(BAD)) as shown:
        page = shown.page
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.get_by_role("main").count() == 1
        assert page.locator("table:not(:has(caption))").count() == 0
        assert page.locator("thead th:not([scope=col]), tbody th:not([scope=row])").count() == 0
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
        assert len(ids) == len(set(ids)) > 0
        box = page.get_by_role("region", name="Hooks", exact=True)
        box.focus()
        assert box.evaluate("element => element === document.activeElement")
