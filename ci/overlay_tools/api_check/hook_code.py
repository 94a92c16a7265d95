"""What the lines that the hooks add need of a release."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from overlay_tools.api_check.references import Reference, code_references
from overlay_tools.api_check.resolver import NameResolver
from overlay_tools.api_check.symbols import Module
from overlay_tools.patches.model import Hook, Patch, target_of
from overlay_tools.patches.series import load_series
from overlay_tools.settings import Project


def hook_references(project: Project, resolver: NameResolver) -> Iterator[Reference]:
    """Yield what the lines that the hooks add need of the release and of the overlay.

    Lines that are not whole statements without upstream's around them are left to the tests of the wheel.
    """
    files = tuple((path, path.stat().st_mtime_ns) for path in sorted(project.patches.rglob("*")) if path.is_file())
    for patch in (patch for hook in _series(project.patches, files) for patch in hook.variants):
        if patch.applies.contains(resolver.sources.version, prereleases=True):
            for module in _added_code(patch):
                yield from code_references(resolver, module, patch.path.relative_to(project.root).as_posix(), hook=True)


@lru_cache(maxsize=1)
def _series(folder: Path, files: tuple[tuple[Path, int], ...]) -> tuple[Hook, ...]:
    """Load the series once for all releases, as long as none of its `files` changes."""
    return load_series(folder)


def _added_code(patch: Patch) -> Iterator[Module]:
    """Yield the lines that each hunk adds, as modules whose line numbers are those of the patch."""
    for file in patch.files:
        for hunk in file:
            lines = {patch.first_line + line.diff_line_no - 1: line.value for line in hunk if line.is_added}
            text = textwrap.dedent("".join(lines.values()))
            try:
                tree = ast.parse(text)
            except SyntaxError:
                continue
            numbers = list(lines)
            for node in ast.walk(tree):
                if hasattr(node, "lineno"):
                    node.lineno = numbers[node.lineno - 1]
            name = target_of(file).removesuffix(".py").replace("/", ".")
            yield Module(name=name, path=target_of(file), in_overlay=True, tree=tree)
