"""Which files of another tree a wheel can take from overlay/, told before they are written there."""

from __future__ import annotations

from pathlib import PurePosixPath

from overlay_tools.checkout import is_scratch
from overlay_tools.wheels.overlay_files import why_in_no_wheel


def why_not_taken(name: str) -> str:
    """Return why no wheel takes a file, by its path there, or why none could be built with it; "" if one does."""
    if not name.startswith("sglang/"):
        return "it is not under sglang/"
    if is_scratch(PurePosixPath(name)):
        return "hidden files and editors' do not"
    return why_in_no_wheel(name)
