"""Changes to patches/: which variant of a hook each release takes, and the files that say so."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from packaging.specifiers import SpecifierSet
from unidiff import PatchSet

from overlay_tools.apply import places
from overlay_tools.errors import OverlayError, PatchError
from overlay_tools.patchset import CONTEXT, FIELDS, MOST_CONTEXT, Hook, Patch, lint, load_patch, load_series, sides
from overlay_tools.process import git
from overlay_tools.scopes import scope_of

_WIDTH = 120
_UNDO = ".nox/undo.json"  # what the files were that are being written


@dataclass(frozen=True, kw_only=True, slots=True)
class _Variant:
    """One text of a patch, and how it words its range and is named if it has a file yet."""

    text: str
    applies: SpecifierSet | None = None
    stem: str = ""


class Queue:
    """The series, to be changed: for every hook, the variant that each release takes.

    Parameters: `hooks`, as read; `versions`, the releases that are or are to be locked, oldest first.
    """

    def __init__(self, hooks: Sequence[Hook], versions: Sequence[str]) -> None:
        self.versions = list(versions)
        self._due = {hook.name: hook.due for hook in hooks}
        self._taken: dict[str, dict[str, _Variant]] = {}
        for hook in hooks:
            taken = self._taken[hook.name] = {}
            for patch in hook.variants:
                text = patch.path.read_bytes().decode("utf-8")  # with the line ends that it has
                variant = _Variant(text=text, applies=patch.applies, stem=patch.path.stem)
                taken |= {v: variant for v in versions if patch.applies.contains(v, prereleases=True)}

    def take(self, hook: str, version: str, like: str) -> None:
        """Let a release take the variant that the release `like` takes."""
        self._taken[hook][version] = self._taken[hook][like]

    def renew(self, hook: str, versions: Sequence[str], header: Mapping[str, str], diff: str) -> None:
        """Let releases take a new variant of a hook, which may be a new hook, added to the end of the series."""
        header = {**header, "Applies": specifier(sorted(versions, key=self.versions.index), self.versions)}
        text = "".join(
            textwrap.fill(
                f"{name}: {header[name]}",
                _WIDTH,
                subsequent_indent=" ",
                break_long_words=False,
                break_on_hyphens=False,
            )
            + "\n"
            for name in FIELDS
        )
        self._due.setdefault(hook, SpecifierSet())
        taken = self._taken.setdefault(hook, {})
        taken |= dict.fromkeys(versions, _Variant(text=f"{text}\n{diff}"))

    def drop(self, hook: str, version: str) -> None:
        """Let a release take no variant: the hook is not due there."""
        self._taken[hook].pop(version, None)

    def patch(self, hook: str, version: str, patches: Path) -> Patch:
        """Return the variant that a release takes, read and checked as if it were in `patches` already.

        Raises PatchError if it is no patch that the series may have.
        """
        with TemporaryDirectory() as folder, as_if_in(patches, folder):
            path = Path(folder) / hook / f"{version}.patch"
            path.parent.mkdir()
            path.write_bytes(self._taken[hook][version].text.encode("utf-8", "surrogateescape"))
            patch = load_patch(path, hook)
        return dataclasses.replace(patch, path=patches / hook / path.name)

    def files(self, series: str) -> dict[str, str]:
        """Return the content of patches/ by path; what says the same as before stays as it was, to the byte.

        Parameters: `series`, the text of the file of this name until now.
        """
        content = {}
        for hook, taken in self._taken.items():
            for variant in dict.fromkeys(taken[version] for version in self.versions if version in taken):
                covered = [version for version in self.versions if taken.get(version) is variant]
                text = variant.text
                if variant.applies is None or covered != _covered(variant.applies, self.versions):
                    text = re.sub(
                        r"(?m)^Applies:.*\n(?:[ \t].*\n)*",
                        f"Applies: {specifier(covered, self.versions)}\n",
                        text,
                        count=1,
                    )
                content[f"{hook}/{covered[0]}.patch"] = text
        content["series"] = self._series(series)
        return content

    def _series(self, text: str) -> str:
        lines = text.splitlines()
        where = {words[0]: n for n, line in enumerate(lines) if (words := line.partition("#")[0].split())}
        for hook, taken in self._taken.items():
            covered = [version for version in self.versions if version in taken]
            if covered == _covered(self._due[hook], self.versions) and hook in where:
                continue
            due = f" {_due(covered, self.versions)}".rstrip()
            if hook in where:
                comment = lines[where[hook]].partition("#")[1:]
                lines[where[hook]] = f"{hook}{due}" + ("  " + "".join(comment) if comment[0] else "")
            else:
                lines.append(f"{hook}{due}")
        return "\n".join(lines) + "\n"


def specifier(covered: Sequence[str], versions: Sequence[str]) -> str:
    """Return the range that holds for the `covered` ones among `versions`, both oldest first, and no other."""
    first, last = versions.index(covered[0]), versions.index(covered[-1])
    if first == last:
        return f"=={covered[0]}"
    left_out = [version for version in versions[first : last + 1] if version not in covered]
    return ",".join([f">={covered[0]}", f"<={covered[-1]}", *(f"!={version}" for version in left_out)])


def make_diff(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> str:
    """Return the diff between files by path: the same for the same content, whatever git and its configuration.

    Only files whose content differs are in it, sorted by path. A file's hunks have three lines of context, or as many
    more as it takes for each of them to fit the file at one place only.
    """
    diffs = []
    for name in sorted(before):
        if before[name] != after[name]:
            lines = before[name].decode("utf-8", "surrogateescape").split("\n")
            for context in range(CONTEXT, MOST_CONTEXT + 1):
                diff = _file_diff(name, before[name], after[name], context)
                hunks = [hunk for file in PatchSet.from_string(diff) for hunk in file]
                if all(len(places(lines, sides(hunk)[0])) == 1 for hunk in hunks):
                    break
            diffs.append(diff)
    return "".join(diffs)


def _file_diff(name: str, before: bytes, after: bytes, context: int) -> str:
    with TemporaryDirectory() as folder:
        for side, data in (("a", before), ("b", after)):
            path = Path(folder) / side / name
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
        words = ["-c", "core.quotePath=false", "diff", "--no-index", "--no-prefix", "--no-renames", "--no-ext-diff"]
        words += ["--no-color", "--text", f"-U{context}", "--inter-hunk-context=0", "--minimal", "--indent-heuristic"]
        # To a file: what git prints, as text, has its line ends made alike.
        git([*words, "--output=diff", "a", "b"], cwd=Path(folder))
        text = (Path(folder) / "diff").read_bytes().decode("utf-8", "surrogateescape")
    text = re.sub(r"(?m)^index [0-9a-f]+\.\..*\n", "", text, count=1)
    # What git writes after the @@ depends on its configuration.
    return re.sub(
        r"(?m)^(@@ -\d+(?:,\d+)? \+(\d+)(?:,\d+)? @@).*$",
        lambda head: f"{head[1]} {scope_of(after, int(head[2]) + context)}".rstrip(),
        text,
    )


def write_patches(
    folder: Path, files: Mapping[str, str], others: Mapping[str, bytes | None] = MappingProxyType({})
) -> list[str]:
    """Make patches/ hold these files and no others; all is written, or where that fails nothing.

    Parameters: `others`, files to write with them by their path in the checkout, None to remove one.
    Returns the paths in the checkout that were written or removed. What a kill leaves half done, `undo` puts back.
    """
    root = folder.parent
    after = {path.relative_to(root).as_posix(): None for path in folder.rglob("*") if path.is_file()} | dict(others)
    after |= {f"{folder.name}/{name}": text.encode() for name, text in files.items()}
    before = {name: (root / name).read_bytes() if (root / name).is_file() else None for name in after}
    changed = {name: data for name, data in sorted(after.items()) if data != before[name]}
    note = {name: None if (data := before[name]) is None else data.decode("latin-1") for name in changed}
    write_files(root, {_UNDO: json.dumps(note).encode()})
    try:
        write_files(root, changed)
    except BaseException:
        undo(root)
        raise
    (root / _UNDO).unlink()
    return list(changed)


def undo(root: Path) -> None:
    """Put back what `write_patches` has changed in a checkout, if it was killed midway."""
    if (root / _UNDO).is_file():
        note = json.loads((root / _UNDO).read_text(encoding="utf-8"))
        for name in note:
            _part(root / name).unlink(missing_ok=True)
        write_files(root, {name: text if text is None else text.encode("latin-1") for name, text in note.items()})
        (root / _UNDO).unlink()


def write_files(folder: Path, files: Mapping[str, bytes | None]) -> None:
    """Write files by path, each whole or not at all; None removes one, and its folder if no other is in it."""
    for name, data in files.items():
        path = folder / name
        if data is None:
            path.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            _part(path).write_bytes(data)
            _part(path).replace(path)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def stage(folder: Path, files: Mapping[str, str], patches: Path, versions: Sequence[str]) -> tuple[Hook, ...]:
    """Write what patches/ is to hold into another folder, read it back and check it against the releases.

    Raises PatchError as `load_series` does, or with what `lint` finds, as if the files were in `patches`.
    """
    write_files(folder, {name: text.encode() for name, text in files.items()})
    with as_if_in(patches, str(folder)):
        hooks = load_series(folder)
        if faults := lint(hooks, versions):
            raise PatchError(*faults, hint="README.md, 'Patches', says what a patch must look like.")
    return hooks


@contextmanager
def as_if_in(real: Path, folder: str) -> Iterator[None]:
    """Let errors that speak of files of a temporary folder speak of those that they are to be, in `real`."""
    try:
        yield
    except OverlayError as error:
        problems = (problem.replace(folder, str(real)) for problem in error.problems)
        raise type(error)(*problems, hint=error.hint.replace(folder, str(real))) from None


def _due(covered: Sequence[str], versions: Sequence[str]) -> str:
    """Return the range of a hook: as `specifier`, but open where it reaches the oldest or the newest release."""
    if not covered:
        return f"<{versions[0]}"
    parts = [f">={covered[0]}"] * (covered[0] != versions[0]) + [f"<={covered[-1]}"] * (covered[-1] != versions[-1])
    first, last = versions.index(covered[0]), versions.index(covered[-1])
    return ",".join(parts + [f"!={version}" for version in versions[first : last + 1] if version not in covered])


def _covered(range_: SpecifierSet, versions: Sequence[str]) -> list[str]:
    return [version for version in versions if range_.contains(version, prereleases=True)]
