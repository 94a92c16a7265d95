"""Which names of files a wheel takes from overlay/, told before a file is written there."""

from __future__ import annotations

from pathlib import PurePosixPath

from overlay_tools.checkout import is_scratch
from overlay_tools.wheels.overlay_files import can_carry


def why_in_no_wheel(name: str) -> str:
    """Return why no wheel takes a file, by its path there, or why none could be built with it; "" if one does."""
    path = PurePosixPath(name)
    if not name.startswith("sglang/"):
        return "it is not under sglang/"
    if is_scratch(path):
        return "hidden files and editors' do not"
    if not can_carry(name):
        return "its name has a backslash, a colon, or what cannot be printed"
    if path.suffix in (".orig", ".rej"):
        return "it was left by a merge or a patch"
    if path.suffix == ".py" and not path.stem.isidentifier():
        return f"a module cannot be named {path.stem!r}"
    return ""
