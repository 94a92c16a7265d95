"""The status as one HTML page, made from page.html.j2 and page.css."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from overlay_tools.errors import OverlayError
from overlay_tools.report.hook_distance import HEADS, HOOKS
from overlay_tools.report.model import State, Status
from overlay_tools.user_files import hint_of, write_whole

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
    write_text(render_page(status), path)


def write_text(text: str, path: Path) -> None:
    """Write a page, whole or not at all.

    Raises OverlayError if the file cannot be written.
    """
    check_place(path)
    try:
        write_whole(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OverlayError(f"{path}: {error.strerror}.", hint=hint_of(error)) from None


def check_place(path: Path, option: str = "--html") -> None:
    """Make the folder that a file is to be in, whose path `option` names.

    Raises OverlayError if it cannot be written there, as far as can be seen before it is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        what = f"{path} cannot be written: {path.parent} is not a folder."
        raise OverlayError(what, hint=f"Remove that file, or name another place with {option}.") from None
    except OSError as error:
        raise OverlayError(
            f"{error.filename}: {error.strerror}.", hint=f"Name a file to write with {option}."
        ) from None
    why = "" if os.access(path.parent, os.W_OK) else f"{path.parent} is not yours to write to"
    if path.is_dir():
        why = "it is a folder"
    elif path.is_symlink() or (path.exists() and not path.is_file()):
        # What is written takes the place of what was there, be it /dev/null.
        why = "it is a link" if path.is_symlink() else "it is a device or a pipe"
    if why:
        raise OverlayError(f"{path} cannot be written: {why}.", hint=f"Name a file to write with {option}.")


def render_page(status: Status) -> str:
    """Return the page; the same status always gives the same page."""
    return render("page.html.j2", status=status, legend=_LEGEND, hooks=HOOKS, heads=HEADS)


def render(template: str, **values: object) -> str:
    """Return a page that a template of this folder makes of values, in the style that all pages have."""
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
    return environment.get_template(template).render(css=css, **values)


def _anchor(*parts: str) -> str:
    """Return the id of a table, of a release or of one of its cells."""
    return "/".join(quote(part, safe="") for part in parts)


def _css_class(state: State) -> str:
    return state.name.lower()
