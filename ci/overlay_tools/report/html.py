"""The status as one HTML page, made from page.html.j2 and page.css."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from overlay_tools.errors import OverlayError
from overlay_tools.report.model import State, Status
from overlay_tools.user_files import hint_of, write_whole

_FOLDER = Path(__file__).parent
_ELSEWHERE = "Name a file to write with --html."
_LEGEND = {
    State.GREEN: "holds for what this checkout builds",
    State.OPEN: "open: not run, run in part, or run before what it runs on changed",
    State.RED: "does not hold",
    State.NEUTRAL: "not required",
}


def write_page(status: Status, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises OverlayError if the file cannot be written.
    """
    check_place(path)
    data = render_page(status).encode("utf-8", "backslashreplace")
    try:
        write_whole(path, data)
    except OSError as error:
        raise OverlayError(f"{path}: {error.strerror}.", hint=hint_of(error)) from None


def check_place(path: Path) -> None:
    """Make the folder that the page is to be in.

    Raises OverlayError if the page cannot be written there, as far as can be seen before it is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        what = f"{path} cannot be written: {path.parent} is not a folder."
        raise OverlayError(what, hint="Remove that file, or name another place with --html.") from None
    except OSError as error:
        raise OverlayError(f"{error.filename}: {error.strerror}.", hint=_ELSEWHERE) from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        why = "it is a folder" if path.is_dir() else f"{path.parent} is not yours to write to"
        raise OverlayError(f"{path} cannot be written: {why}.", hint=_ELSEWHERE)


def render_page(status: Status) -> str:
    """Return the page; the same status always gives the same page."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["anchor"] = _anchor
    environment.filters["css_class"] = _css_class
    css = (_FOLDER / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(status=status, legend=_LEGEND, css=css)


def _anchor(*parts: str) -> str:
    """Return the id of a table, of a release or of one of its cells."""
    return "/".join(quote(part, safe="") for part in parts)


def _css_class(state: State) -> str:
    return state.name.lower()
