"""Wheels: read a base, write a new one around the compressed bytes of what did not change.

The writer follows PKWARE's APPNOTE.TXT 6.3.10: 4.3.7 (local header), 4.3.12 (central directory), 4.3.16 (its end).
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass

from overlay_tools.errors import WheelError


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordRow:
    """One line of a RECORD: path, hash (as "sha256=..."), size in bytes; the last two empty for RECORD itself."""

    path: str
    digest: str
    size: str


def parse_record(text: str) -> dict[str, RecordRow]:
    """Return the lines of a RECORD by path.

    Raises WheelError if a line has not three columns, or a path is there twice.
    """
    rows: dict[str, RecordRow] = {}
    for number, line in enumerate(csv.reader(io.StringIO(text, newline="")), 1):
        if len(line) != 3 or line[0] in rows:
            raise WheelError(f"RECORD:{number}: {','.join(line)!r} is malformed or there twice.")
        rows[line[0]] = RecordRow(path=line[0], digest=line[1], size=line[2])
    return rows


def format_record(rows: Iterable[RecordRow]) -> bytes:
    """Return the text of a RECORD."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows((row.path, row.digest, row.size) for row in rows)
    return text.getvalue().encode("utf-8")


def record_row(path: str, content: bytes) -> RecordRow:
    """Return the line of RECORD for a file."""
    return RecordRow(path=path, digest=record_digest(content), size=str(len(content)))


def record_digest(content: bytes) -> str:
    """Return a hash as RECORD writes it: sha256, URL-safe base64 without padding."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode("ascii")
