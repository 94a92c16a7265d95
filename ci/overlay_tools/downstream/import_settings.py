"""What an import changes in pyproject.toml: the releases that take its new files, and what the base requires."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet

from overlay_tools.downstream.queue import due_range, specifier
from overlay_tools.downstream.settings_file import with_dependencies, with_ranges
from overlay_tools.settings import Project
from overlay_tools.upstream.source_tree import SourceTree
from overlay_tools.user_files import decode
from overlay_tools.wheels.dependencies import compare_requirements, rules_for
from overlay_tools.wheels.overlay_files import names_of


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportSettings:
    """What becomes of pyproject.toml.

    `text`: all of it; `releases`: those that take each new file; `kept`: which have a file of that name, a line each;
    `requirements`: what the base requires then, and `warnings` what of it cannot be written, a line each.
    """

    text: str
    releases: Mapping[str, Sequence[str]]
    kept: Sequence[str]
    requirements: Sequence[str]
    warnings: Sequence[str]


def plan_settings(
    project: Project,
    base: str,
    overlay: Mapping[str, bytes | None],
    wanted: SpecifierSet | None,
    sources: Mapping[str, SourceTree],
    metadata: tuple[bytes, bytes] | None,
) -> ImportSettings:
    """Give new files to the base, and let it require what a fork of it does.

    Parameters: `overlay`, what becomes of files of overlay/, by path in a wheel; `wanted`, other releases that take the
    new ones too, but for those where upstream has a file of that name; `metadata`, METADATA of the base and that of the
    fork, None if there is none.
    """
    versions, gone = list(sources), {name for name, data in overlay.items() if data is None}
    new = [name for name in overlay if name not in gone and not (project.overlay / name).is_file()]
    text = decode(project.settings.read_bytes(), project.settings)
    releases = {name: _taking(name, base, wanted, sources) for name in sorted(new)}
    kept = [
        line for tree in sources.values() if (line := _kept(tree, [n for n in new if tree.version not in releases[n]]))
    ]
    if wanted is None:
        ranges = dict.fromkeys(releases, specifier([base], versions))
    else:
        ranges = {name: due_range(taking, versions) for name, taking in releases.items()}
    text = with_ranges(text, ranges, {*names_of(project.overlay), *new} - gone)
    if metadata is None:
        return ImportSettings(text=text, releases=releases, kept=kept, requirements=[], warnings=[])
    found = compare_requirements(*metadata)
    changes = [*(f"requires {each}" for each in found.override), *(f"excludes {each}" for each in found.exclude)]
    warnings = list(found.left_out)
    before, text = text, with_dependencies(text, f"=={base}", found.override, found.exclude)
    if text != before and (rules := rules_for(project, base)):
        text, warnings = (
            before,
            [*warnings, *(f"{change}: not written, for {rules[0].where} has others." for change in changes)],
        )
    return ImportSettings(
        text=text, releases=releases, kept=kept, requirements=changes if text != before else [], warnings=warnings
    )


def _taking(name: str, base: str, wanted: SpecifierSet | None, sources: Mapping[str, SourceTree]) -> Sequence[str]:
    """Return the releases that take a new file."""
    return [
        version
        for version, tree in sources.items()
        if version == base
        or (wanted is not None and wanted.contains(version, prereleases=True) and tree.read(name) is None)
    ]


def _kept(tree: SourceTree, names: Sequence[str]) -> str:
    """Say which new files a release does not take and has its own of, "" if none."""
    own = sorted(name for name in names if tree.read(name) is not None)
    rest = f" and {len(own) - 1} more" if own[1:] else ""
    return f"sglang {tree.version} has its own {own[0]}{rest}, and keeps what it has." if own else ""
