"""What gives a release's version inside its wheel, with the version of the wheel that is built of it."""

from __future__ import annotations

import re

from overlay_tools.archive.reader import WheelReader
from overlay_tools.errors import BuildError

VERSION_FILE = "sglang/_version.py"


def version_module(base: WheelReader, old: str, new: str) -> bytes:
    """Return sglang/_version.py, as setuptools-scm writes it, with the new version in place of the old one."""
    text = base.read(VERSION_FILE).decode("utf-8")
    text, strings = re.subn(rf"(?m)^(__version__ = version = )'{re.escape(old)}'$", rf"\1'{new}'", text)
    local, of_base = new.partition("+")[2], old.partition("+")[2]
    last = f", '{re.escape(of_base)}'" if of_base else ""
    text, tuples = re.subn(rf"(?m)^(__version_tuple__ = version_tuple = \(.*){last}\)$", rf"\1, '{local}')", text)
    if strings != 1 or tuples != 1:
        raise BuildError(
            f"{VERSION_FILE} of {base.path} does not give its version in the form that this tool knows.",
            hint="Teach `version_module` in wheels/version_files.py the new form.",
        )
    return text.encode("utf-8")


def metadata_of(base: WheelReader, old: str, new: str) -> bytes:
    """Return METADATA with the new version in place of the old one."""
    head, separator, body = base.read(f"{base.dist_info}/METADATA").partition(b"\n\n")
    head, count = re.subn(
        rb"(?m)^Version: " + re.escape(old.encode()) + rb"(?=\r?$)", b"Version: " + new.encode(), head
    )
    if count != 1:
        raise BuildError(
            f"METADATA of {base.path} does not give {old} as its version.", hint="Lock the release's own wheel."
        )
    return head + separator + body
