"""How a wheel was made: an in-toto statement beside it, with a SLSA provenance of all that the build read.

It follows in-toto's Statement v1 and SLSA's provenance v1; ci/README.md says what a build of this type has in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overlay_tools import __version__
from overlay_tools.checkout import checked_out
from overlay_tools.errors import ToolError, VerifyError
from overlay_tools.patches.model import Patch
from overlay_tools.settings import Project
from overlay_tools.upstream.lockfile import LockedWheel
from overlay_tools.wheels.overlay_files import read_file

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:sglang-overlay:build:1"
_BUILDER = "urn:sglang-overlay:tools"
# What else settles a build. `port` makes one without a lock, for a release that is not in one yet.
_OTHER_FILES = ("upstream.lock", "pyproject.toml", "patches/series", "LICENSE", "NOTICE")


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """The wheel that a statement is about: its file name, and its sha256 in hexadecimal."""

    name: str
    sha256: str


def statement_of(wheel: Path) -> Path:
    """Return where the statement about a wheel is: beside it."""
    return wheel.with_name(f"{wheel.name}.provenance.json")


def describe_build(
    project: Project,
    distribution: str,
    wheel: str,
    overlay: Mapping[str, bytes],
    *,
    release: str = "",
    base: LockedWheel | None = None,
    patches: Sequence[Patch] = (),
) -> dict[str, Any]:
    """Return the provenance of a wheel that is about to be written; it has no date, so it is the same in each run.

    Parameters: `wheel`, its file name; `overlay`, the files of overlay/ that it is made of; `release`, "" for a wheel
    that is for none in particular.
    Raises BuildError if a file of the checkout cannot be read.
    """
    python, _, target = wheel.removesuffix(".whl").split("-")[-3:]
    files = {f"overlay/{name}": data for name, data in overlay.items()}
    files |= {name: read_file(project.root / name) for name in _OTHER_FILES if (project.root / name).exists()}
    try:
        commit, changed = checked_out(project.root)
        unknown = "not a git checkout with a commit"
    except ToolError:  # a build needs no git
        commit, changed, unknown = "", False, "not known: git is absent, or does not open what belongs to another user"
    sources = [
        *([_base(base)] if base else []),
        *({"name": _name(patch), "digest": {"sha256": patch.sha256}} for patch in patches),
        *({"name": name, "digest": {"sha256": _sha256(data)}} for name, data in sorted(files.items())),
        *([{"name": "checkout", "digest": {"gitCommit": commit}}] if commit and not changed else []),
    ]
    state = f"{commit}, changed since" if changed else commit or unknown
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "distribution": distribution,
                **({"release": release} if release else {}),
                "python": python,
                "target": target,
                "revision": project.revision,
            },
            "resolvedDependencies": sources,
        },
        "runDetails": {
            "builder": {"id": _BUILDER, "version": {"sglang-overlay-tools": __version__, "checkout": state}}
        },
    }


def make_statement(provenance: Mapping[str, Any], subject: Subject) -> bytes:
    """Return the statement that a wheel has a provenance, as JSON."""
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": subject.name, "digest": {"sha256": subject.sha256}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": provenance,
    }
    return (json.dumps(statement, indent=1, sort_keys=True) + "\n").encode()


def read_subject(statement: bytes, where: str) -> Subject:
    """Return the wheel that a statement is about.

    Parameters: `where`, what an error calls the statement.
    Raises VerifyError if it is not a statement of one wheel's provenance.
    """
    try:
        data = json.loads(statement)
        (subject,) = data["subject"]
        found = Subject(name=subject["name"], sha256=subject["digest"]["sha256"])
        fits = (data["_type"], data["predicateType"]) == (STATEMENT_TYPE, PREDICATE_TYPE)
    except (ValueError, KeyError, TypeError, RecursionError):
        fits = False
    if not fits:
        raise VerifyError(
            f"{where} is not a statement of a wheel's provenance.", hint="Build the wheel anew: `nox -s build`."
        )
    return found


def _base(base: LockedWheel) -> dict[str, object]:
    from overlay_tools.wheels.sbom import base_purl  # see `_bill` in builder.py

    return {"name": base.name, "uri": base_purl(base).to_string(), "digest": {"sha256": base.sha256}}


def _name(patch: Patch) -> str:
    return f"patches/{patch.hook}/{patch.path.name}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
