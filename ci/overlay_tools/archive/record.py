"""RECORD: the list of a wheel's files, each with its hash and its size."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Iterable

from installer.records import Hash, InvalidRecordEntry, RecordEntry, parse_record_file

from overlay_tools.errors import WheelError

PROVING = ("sha256", "sha384", "sha512")  # of the hashes that RECORD may hold, those that are not broken


def parse_record(data: bytes, where: str) -> dict[str, RecordEntry]:
    """Return the entries of a RECORD by path.

    Parameters: `where`, what an error calls the file.
    Raises WheelError, with the number of the entry, if one is malformed or names a path for the second time.
    """
    entries: dict[str, RecordEntry] = {}
    try:
        for elements in parse_record_file(io.StringIO(data.decode("utf-8"), newline="")):
            entry = RecordEntry.from_elements(*elements)
            if entry.path in entries:
                raise InvalidRecordEntry(elements=elements, issues=["the path is listed twice"])
            entries[entry.path] = entry
    except InvalidRecordEntry as error:
        what = f"{','.join(error.elements)!r}: {error}"
    except (UnicodeDecodeError, csv.Error) as error:
        what = str(error)
    else:
        return entries
    raise WheelError(f"{where}: entry {len(entries) + 1}: {what}.", hint="Fetch or build the wheel anew.")


def format_record(entries: Iterable[RecordEntry]) -> bytes:
    """Return the text of a RECORD, its entries in the order given."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(entry.to_row() for entry in entries)
    return text.getvalue().encode("utf-8")


def hash_of(content: bytes) -> Hash:
    """Return the hash that RECORD gives a file: sha256, in URL-safe base64 without padding."""
    digest = hashlib.sha256(content).digest()
    return Hash("sha256", base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii"))


def proves(digest: Hash, content: bytes) -> bool:
    """Tell whether a hash of RECORD shows that a file has this content; MD5 and SHA-1 show nothing."""
    return digest.name in PROVING and digest.validate(content)
