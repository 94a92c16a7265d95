"""The series of hooks in patches/, read and checked against the files that lie there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from overlay_tools.checkout import check_whole, is_scratch, own_paths
from overlay_tools.errors import PatchError
from overlay_tools.patches.model import README, Hook, Patch
from overlay_tools.patches.patch_file import HINT, load_patch
from overlay_tools.user_files import read_text


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """A line of the series: its number, the hook that it names, and the releases where that is due."""

    line: int
    name: str
    due: SpecifierSet


def load_series(folder: Path) -> tuple[Hook, ...]:
    """Read `series` and every patch of the hooks that it lists, in order.

    Raises PatchError with every fault found: of headers, diffs, paths and of files that are unlisted or absent; or
    OverlayError if a command that writes them was killed midway.
    """
    check_whole(folder.parent)
    series = folder / "series"
    text = read_text(series, PatchError, "List the hooks there, one a line.")
    entries, faults = _parse_series(series, text)
    hooks = []
    for entry in entries:
        paths = [path for path in sorted((folder / entry.name).glob("*.patch")) if not is_scratch(Path(path.name))]
        if not paths:
            faults.append(f"{series}:{entry.line}: there is no patch in {folder / entry.name}.")
        variants, more = _load_variants(paths, entry.name)
        faults += more
        hooks.append(Hook(name=entry.name, due=entry.due, variants=tuple(variants)))
    faults += _unlisted(folder, series, {hook.name for hook in hooks})
    if faults:
        raise PatchError(*faults, hint=HINT)
    return tuple(hooks)


def _parse_series(series: Path, text: str) -> tuple[list[_Entry], list[str]]:
    """Return what a series lists, a hook a line, and its faults; `#` begins a comment."""
    entries: dict[str, _Entry] = {}
    faults = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split(maxsplit=1)
        if not words:
            continue
        name, range_ = words[0], "".join(words[1:])
        if name in entries:
            faults.append(f"{series}:{number}: {name} is listed twice.")
        else:
            try:
                entries[name] = _Entry(line=number, name=name, due=SpecifierSet(range_.strip()))
            except InvalidSpecifier as error:
                faults.append(f"{series}:{number}: {error}.")
    return list(entries.values()), faults


def _load_variants(paths: Sequence[Path], hook: str) -> tuple[list[Patch], list[str]]:
    """Return the patches of a hook, and the faults of those that cannot be read."""
    variants: list[Patch] = []
    faults: list[str] = []
    for path in paths:
        try:
            variants.append(load_patch(path, hook))
        except PatchError as error:
            faults += error.problems
    return variants, faults


def _unlisted(folder: Path, series: Path, hooks: Collection[str]) -> Iterable[str]:
    """Yield what lies in patches/ and is neither a patch of a hook in the series nor about the hooks."""
    for path in own_paths(folder):
        parts = path.relative_to(folder).parts
        listed = parts[0] in hooks and (len(parts) == 1 or (len(parts) == 2 and path.suffix == ".patch"))
        if path not in (series, folder / README) and not listed:
            yield f"{path} is not a patch of a hook that {series} lists."
