"""ci/results.json: what each stage of the tests said of each release, for which state of what is shipped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from overlay_tools.errors import OverlayError
from overlay_tools.patches.model import Hook
from overlay_tools.settings import Project
from overlay_tools.subprocesses import git
from overlay_tools.upstream.lockfile import Release, dump_lock
from overlay_tools.wheels.dependencies import rules_for
from overlay_tools.wheels.overlay_files import read_package

_MEND = "Restore the file from git; `nox -s matrix` writes it."


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One stage of one release: how many tests `passed` and `failed`, why others were `skipped`, seconds taken.

    `python` and `machine` are what it ran on; `date`, when it ended (UTC, ISO 8601); `commit`, of which checkout, with
    a "+" where that had changes not committed; `inputs`, the digest of what was under test.
    """

    release: str
    stage: str
    passed: int
    failed: int
    skipped: Sequence[str]
    seconds: float
    python: str
    machine: str
    date: str
    commit: str
    inputs: str

    @property
    def green(self) -> bool:
        """Tell whether every test of the stage ran and passed."""
        return self.passed > 0 and self.failed == 0 and not self.skipped


Results = Mapping[tuple[str, str], Result]


def load_results(path: Path) -> Results:
    """Read the results by release and stage; a file that is absent holds none.

    Raises OverlayError if the file holds anything else.
    """
    if not path.exists():
        return {}
    try:
        results = [Result(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        why = getattr(error, "strerror", None) or error
        raise OverlayError(f"{path} cannot be read as results: {why}.", hint=_MEND) from None
    for result in results:
        for field in fields(Result):
            value = getattr(result, field.name)
            if type(value).__name__ != str(field.type).replace("Sequence[str]", "list"):
                raise OverlayError(f"{path}: {result.release} {result.stage}: {field.name} is {value!r}.", hint=_MEND)
        if not all(isinstance(reason, str) for reason in result.skipped):
            raise OverlayError(f"{path}: {result.release} {result.stage}: skipped is {result.skipped!r}.", hint=_MEND)
    by_stage = {(result.release, result.stage): result for result in results}
    if len(by_stage) < len(results):
        raise OverlayError(f"{path} holds two results of one stage of a release.", hint=_MEND)
    return by_stage


def save_results(path: Path, results: Iterable[Result]) -> None:
    """Write results, sorted, whole or not at all."""
    rows = [asdict(result) for result in sorted(results, key=lambda result: (result.release, result.stage))]
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def inputs(project: Project, release: Release, hooks: Sequence[Hook]) -> str:
    """Return a digest of what a release is built from: its lock entry, hooks, overlay, changed requirements.

    A result is of today's wheels where its `inputs` are today's.
    """
    digest = hashlib.sha256(dump_lock({release.version: release}).encode())
    for hook in hooks:
        if patch := hook.variant(release.version):
            digest.update(patch.diff.encode())
    for package in ("sglang", "sgl_kernel"):
        for name, data in read_package(project, package, release.version).items():
            digest.update(f"\0{name}\0{len(data)}\0".encode() + data)
    for rule in rules_for(project, release.version):
        digest.update(repr([[str(each) for each in some] for some in (rule.override, rule.exclude)]).encode())
    return digest.hexdigest()[:16]


def commit_of(root: Path) -> str:
    """Return the commit that is checked out, shortened, with a "+" if there are changes besides the results'."""
    head = git(["rev-parse", "--short=12", "HEAD"], cwd=root)
    if head.returncode != 0:
        raise OverlayError(f"{root} is not a git checkout with a commit.", hint="Results name the commit they are of.")
    changes = git(["status", "--porcelain", "--", ".", ":!ci/results.json"], cwd=root)
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")
