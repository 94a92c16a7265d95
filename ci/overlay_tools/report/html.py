"""The status as one HTML page, made from page.html.j2 and page.css."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from overlay_tools.errors import OverlayError
from overlay_tools.report.model import State, Status

_FOLDER = Path(__file__).parent
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
    page = render_page(status).encode("utf-8", "backslashreplace")
    part = path.parent / f".{path.name}.{os.getpid()}.part"  # another command may write the same page
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(page)
        part.replace(path)
    except (FileExistsError, NotADirectoryError):
        what = f"{path} cannot be written: {path.parent} is not a folder."
        raise OverlayError(what, hint="Remove that file, or name another place with --html.") from None
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise OverlayError(f"{path}: {error.strerror}.", hint="Name a file to write with --html.") from None


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
