"""What the lines that the hooks add need of a release, once all hooks are applied to it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from unidiff import PatchedFile

from overlay_tools.api_check.references import Reference, code_references
from overlay_tools.api_check.resolver import NameResolver
from overlay_tools.api_check.upstream_imports import importing
from overlay_tools.errors import PatchError, WheelError
from overlay_tools.patches.apply import apply_series, find_block
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.model import Hook, Patch, sides, source_of, split_lines, target_of, variants_of
from overlay_tools.patches.series import load_series
from overlay_tools.settings import Project
from overlay_tools.upstream.source_tree import SourceTree, module_name, parse


@dataclass(frozen=True, kw_only=True, slots=True)
class AppliedPatch:
    """A patch with the content, right after it, of the files that it changes, None for those that are gone."""

    patch: Patch
    after: Mapping[str, bytes | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class AppliedHooks:
    """The hooks of a release in the order in which they apply, and the files as all of them leave them."""

    patches: Sequence[AppliedPatch]
    files: Mapping[str, bytes | None]


def apply_hooks(project: Project, sources: SourceTree) -> AppliedHooks:
    """Apply the hooks that are due to a release.

    Raises PatchError if patches/ cannot be read, or a hook does not apply.
    """
    paths = tuple((path, path.stat().st_mtime_ns) for path in sorted(project.patches.rglob("*")) if path.is_file())
    applied: list[AppliedPatch] = []
    files: dict[str, bytes | None] = {}
    for patch in variants_of(_series(project.patches, paths), sources.version):
        after = apply_series([patch], HookedTree(sources, files).read, f"sglang {sources.version}")
        applied.append(AppliedPatch(patch=patch, after=after))
        files |= after
    _check_syntax(files, sources.version)
    return AppliedHooks(patches=applied, files=files)


def _check_syntax(files: Mapping[str, bytes | None], version: str) -> None:
    faults: list[str] = []
    for name, data in files.items():
        try:
            if data is not None and name.endswith(".py"):
                parse(data, f"{name} of sglang {version} with the hooks applied")
        except WheelError as error:
            faults += error.problems
    if faults:
        raise PatchError(*faults, hint="Mend the hook that changes it: `nox -s edit` opens the release.")


def hook_references(project: Project, resolver: NameResolver, hooks: AppliedHooks) -> Iterator[Reference]:
    """Yield what the statements that the hooks add or change need of the release and of the overlay."""
    for number, applied in enumerate(hooks.patches, 1):
        where = applied.patch.path.relative_to(project.root).as_posix()
        for file in applied.patch.files:
            name = _last_name(target_of(file), hooks.patches[number:])
            module = resolver.module(module_name(name))
            after, last = applied.after[target_of(file)], hooks.files[name]
            if name.endswith(".py") and module is not None and after is not None and last is not None:
                lines = _added_lines(applied.patch, file, after, last)
                yield from code_references(resolver, module, where, lines)
            if source_of(file).endswith(".py") and hooks.files.get(source_of(file), b"") is None:
                gone = module_name(source_of(file))
                for path in importing(resolver.sources, gone):  # all of them still name it
                    what = f"{path}: {gone}"
                    yield Reference(where=where, kind="import", what=what, problem="a hook takes it away")


def _last_name(name: str, later: Sequence[AppliedPatch]) -> str:
    """Return the path of a file after later patches, which may rename it."""
    for file in (file for applied in later for file in applied.patch.files):
        name = target_of(file) if source_of(file) == name else name
    return name


@lru_cache(maxsize=1)
def _series(folder: Path, files: tuple[tuple[Path, int], ...]) -> tuple[Hook, ...]:
    """Load the series once for all releases, as long as none of its `files` changes."""
    return load_series(folder)


def _added_lines(patch: Patch, file: PatchedFile, after: bytes, last: bytes) -> dict[int, int]:
    """Return the lines that a patch adds to a file, by their number there, with their number in the patch.

    Parameters: `after`, the file's content right after the patch; `last`, its content after all patches.
    """
    lines = split_lines(after)
    moved = _moved_lines(lines, split_lines(last))
    found = {}
    for hunk in file:
        starts = find_block(lines, sides(hunk)[1])
        start = min(starts, key=lambda line, hunk=hunk: abs(line + 1 - hunk.target_start))  # type: ignore[misc]
        kept = (line for line in hunk if line.is_added or line.is_context)
        for number, line in enumerate(kept, start + 1):
            if line.is_added and number in moved:
                found[moved[number]] = patch.first_line + line.diff_line_no - 1
    return found


def _moved_lines(old: Sequence[str], new: Sequence[str]) -> dict[int, int]:
    """Return where each line of one text stands in another one, both counted from 1."""
    if old == new:
        return {number: number for number in range(1, len(old) + 1)}
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
    return {a + n + 1: b + n + 1 for a, b, size in blocks for n in range(size)}
