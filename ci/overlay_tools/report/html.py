"""The status as one HTML page: nothing beside it, no script, light or dark, on a phone or a wide screen."""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import quote

from overlay_tools.errors import OverlayError
from overlay_tools.report.model import Cell, State, Status, StatusTable

_LEGEND = {
    State.GREEN: "holds for what this checkout builds",
    State.OPEN: "open: not run, run in part, or run before what is built changed",
    State.RED: "does not hold",
    State.NEUTRAL: "not asked for",
}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_page(status: Status, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises OverlayError if there can be no such file.
    """
    part = path.parent / f".{path.name}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(page(status).encode("utf-8", "backslashreplace"))
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise OverlayError(f"{path}: {error.strerror}.", hint="Name a file to write with --html.") from None


def page(status: Status) -> str:
    """Return the page; the same status always gives the same page."""
    html = _tag(
        "html",
        _tag(
            "head",
            _tag("meta", charset="utf-8"),
            _tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            _tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            _tag("link", rel="icon", href="data:,"),
            _tag("title", f"{status.verdict} · sglang-overlay"),
            _tag("style", Path(__file__).with_name("page.css").read_text(encoding="utf-8")),
        ),
        _tag(
            "body",
            _header(status),
            _tag("main", _overview(status), *(_section(status, table) for table in status.tables), *_todo(status)),
        ),
        lang="en",
    )
    return f"<!doctype html>\n{ET.tostring(html, encoding='unicode', method='html')}\n"


def _header(status: Status) -> ET.Element:
    of = ["at commit ", _tag("code", status.commit)] if status.commit else ["in no git checkout"]
    return _tag(
        "header",
        _tag("h1", f"{status.worst.value} {status.verdict}"),
        _tag("p", "sglang-overlay ", *of, f"; the default release is {status.default}."),
        class_=f"striped {_name(status.worst)}",
    )


def _overview(status: Status) -> ET.Element:
    """Return a tile for each table, a chip for each release, and the legend."""
    totals, chips, legend = _tag("ul", class_="totals"), _tag("ul", class_="chips"), _tag("ul", class_="legend")
    for table in status.tables:
        figure = _tag("b", f"{table.worst.value} {table.ok} of {len(table.rows)}")
        look = f"striped {_name(table.worst)}"
        tile = _tag("a", figure, " ", table.name, href=f"#{_anchor(table.name)}", class_=look)
        totals.append(_tag("li", tile))
    for release in status.releases:
        state = status.state(release)
        text = f"{state.value} {release}"
        chip = _tag("span", text) if state.ok else _tag("a", text, href=f"#{_anchor(release)}")
        chips.append(_tag("li", chip, class_=_name(state)))
    for state, meaning in _LEGEND.items():
        legend.append(_tag("li", _tag("span", state.value, class_="sign"), f" {meaning}", class_=_name(state)))
    legend.append(_tag("li", _tag("code", "+"), " after a commit: with changes that are not committed"))
    return _tag("section", totals, chips, legend, aria_label="Overview")


def _section(status: Status, table: StatusTable) -> ET.Element:
    head = _tag("tr", _tag("th", "Release", scope="col"), *(_tag("th", name, scope="col") for name in table.columns))
    body = _tag("tbody", "\n")
    for release, cells in table.rows.items():
        row = _tag("tr", _tag("th", release, scope="row"))
        if release == status.default:
            row[0].append(_tag("small", " default"))
        for column, cell in zip(table.columns, cells, strict=True):
            row.append(_td(cell, _anchor(release, table.name, column)))
        row.tail = "\n"
        body.append(row)
    caption = _tag("caption", _tag("span", table.about))
    anchor = _anchor(table.name)
    heading = _tag("h2", table.name, id=anchor)
    # A box that scrolls must be reachable by the keyboard.
    grid = _tag("table", caption, _tag("thead", head), body)
    return _tag(
        "section", heading, _tag("div", grid, class_="scroll", tabindex="0", role="region", aria_labelledby=anchor)
    )


def _td(cell: Cell, anchor: str) -> ET.Element:
    word = _tag("span", _tag("span", cell.state.value, class_="sign"), f" {cell.word}")
    if not cell.state.ok:
        word = _tag("a", word, href=f"#{anchor}")
    td = _tag("td", _tag("div", word, class_="word"))
    notes = " · ".join(cell.notes)
    if cell.names:
        names = _tag("ul", *(_tag("li", name) for name in cell.names))
        td.append(_tag("details", _tag("summary", notes or "by name"), names))
    elif notes:
        td.append(_tag("div", notes, class_="notes"))
    td.set("class", _name(cell.state))
    return td


def _todo(status: Status) -> list[ET.Element]:
    """Return, if there is any, the section of what is to be known of every cell that is not ok."""
    releases = [release for release in status.releases if status.todo(release)]
    if not releases:
        return []
    section = _tag("section", _tag("h2", "What is not green"))
    section.append(_tag("p", _tag("code", "nox -s table"), " runs every stage that is open or red."))
    for release in releases:
        entries = _tag("dl")
        for table, column, cell in status.todo(release):
            anchor = _anchor(release, table.name, column)
            entries.append(_tag("dt", f"{cell.state.value} {column}: {cell.word}", id=anchor, class_=_name(cell.state)))
            entries.extend(_tag("dd", problem) for problem in cell.problems)
        name = _tag("h3", f"sglang {release}")
        section.append(_tag("article", name, entries, id=_anchor(release), class_=_name(status.state(release))))
    return [section]


def _anchor(*parts: str) -> str:
    return "/".join(quote(part, safe="") for part in parts)


def _name(state: State) -> str:
    return state.name.lower()


def _tag(name: str, /, *children: ET.Element | str, **attributes: str) -> ET.Element:
    """Return an element: the page is built as a tree, so that whatever is in a text is escaped when it is written."""
    element = ET.Element(name, {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()})
    for child in children:
        if isinstance(child, ET.Element):
            element.append(child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + child
        else:
            element.text = (element.text or "") + child
    return element
