"""ci/results.json: what each stage of the tests said of each release, for which state of what is shipped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from overlay_tools.checkout import checked_out
from overlay_tools.errors import OverlayError
from overlay_tools.user_files import read_text, write_whole

_TYPES = {"str": str, "int": int, "float": float, "Sequence[str]": list, "Mapping[str, str]": dict}
_MEND = "Restore the file from git; `nox -s matrix` writes it."


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One stage of one release: how many tests `passed` and `failed`, why others were `skipped`, seconds taken.

    `left_out`: the models that the release is built without, and why; they have no tests there.
    `python` and `machine` are what it ran on; `date`, when it ended (UTC, ISO 8601); `commit`, of which checkout, with
    a "+" where that had changes not committed; `installed`, what its environment had of torch and kernels; `inputs`,
    what it ran on, by part, nothing where an older tool has recorded it.
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
    inputs: Mapping[str, str]
    installed: str = ""
    left_out: Sequence[str] = field(default_factory=list)

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
        results = [_result(row) for row in json.loads(read_text(path, hint=_MEND))]
    except (OSError, ValueError, TypeError) as error:
        why = getattr(error, "strerror", None) or error
        raise OverlayError(f"{path} cannot be read as results: {why}.", hint=_MEND) from None
    for result in results:
        for each in fields(Result):
            value = getattr(result, each.name)
            if type(value) is not _TYPES.get(str(each.type)):
                raise OverlayError(f"{path}: {result.release} {result.stage}: {each.name} is {value!r}.", hint=_MEND)
        lists = {"skipped": result.skipped, "left_out": result.left_out, "inputs": [*result.inputs.values()]}
        for name, texts in lists.items():
            if not all(isinstance(text, str) for text in texts):
                raise OverlayError(f"{path}: {result.release} {result.stage}: {name} holds {texts!r}.", hint=_MEND)
    by_stage = {(result.release, result.stage): result for result in results}
    if len(by_stage) < len(results):
        raise OverlayError(f"{path} holds two results of one stage of a release.", hint=_MEND)
    return by_stage


def save_results(path: Path, results: Iterable[Result]) -> None:
    """Write results, sorted, whole or not at all."""
    rows = [asdict(result) for result in sorted(results, key=lambda result: (result.release, result.stage))]
    # A line for each field: short enough to read, and to compare in git.
    texts = [",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in row.items()) for row in rows]
    write_whole(path, ("[\n" + ",\n".join(f" {{\n{text}\n }}" for text in texts) + "\n]\n").encode())


def _result(row: Any) -> Result:  # noqa: ANN401  # whatever JSON holds
    """Return the result of a row; an older tool has recorded one digest of a few of its inputs, which tells nothing."""
    result = Result(**row)
    return replace(result, inputs={}) if isinstance(result.inputs, str) else result


def commit_of(root: Path) -> str:
    """Return the commit that is checked out, shortened, with a "+" if there are changes besides the results'."""
    commit, changed = checked_out(root, "ci/results.json")
    if not commit:
        raise OverlayError(f"{root} is not a git checkout with a commit.", hint="Results name the commit they are of.")
    return commit[:12] + ("+" if changed else "")
