"""What patches/ holds: hooks, the variants of each, and which variant a release takes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from unidiff import Hunk, PatchedFile

from overlay_tools.errors import PatchError

FIELDS = ("Subject", "Why", "Applies", "Forwarded", "Remove-When")
FORWARDED = re.compile(r"https://\S+$|no: \S")
HOOK_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
ORDINARY, EXECUTABLE = "100644", "100755"  # git's modes of files
README = "README.md"  # in patches/: about the hooks, and not one of them
TO_BE_FILLED = "TO BE FILLED"  # stands in a header for what a person must say yet
CONTEXT = 3  # lines at each end of a hunk, or more where it would fit at more than one place with these


@dataclass(frozen=True, kw_only=True, slots=True)
class Patch:
    """One variant of a hook.

    `header`: what it says of itself, continued lines joined by a blank; `applies`: the releases it is for; `diff`: the
    text after the header, which starts on line `first_line`; `files`: that diff, parsed; `added` and `removed`: lines
    touched.
    """

    hook: str
    path: Path
    sha256: str
    header: Mapping[str, str]
    applies: SpecifierSet
    diff: str
    first_line: int
    files: Sequence[PatchedFile]

    @property
    def names(self) -> list[str]:
        """Return the files that the patch changes, under the names from before it and after it."""
        return list(dict.fromkeys(name for file in self.files for name in (source_of(file), target_of(file))))

    @property
    def added(self) -> int:
        """Return how many lines the patch adds."""
        return sum(file.added for file in self.files)

    @property
    def removed(self) -> int:
        """Return how many lines the patch removes."""
        return sum(file.removed for file in self.files)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hook:
    """One entry of the series: the releases where it is `due`, and its variants."""

    name: str
    due: SpecifierSet
    variants: tuple[Patch, ...]

    def variant(self, version: str) -> Patch | None:
        """Return the variant for a release, or None where the hook is not due.

        Raises PatchError if it has none where it is due, one where it is not, or more than one.
        """
        fitting = [patch for patch in self.variants if patch.applies.contains(version, prereleases=True)]
        if len(fitting) > 1:
            raise PatchError(
                f"{' and '.join(str(patch.path) for patch in fitting)} both apply to sglang {version}.",
                hint="Narrow `Applies` so that one of them does.",
            )
        due = self.due.contains(version, prereleases=True)
        if due and not fitting:
            raise PatchError(
                f"Hook {self.name} has no variant for sglang {version}.",
                hint=f"Widen `Applies` of one, or add {self.name}/{version}.patch.",
            )
        if fitting and not due:
            raise PatchError(
                f"{fitting[0].path} applies to sglang {version}; the series says the hook is due for {self.due}.",
                hint="Narrow `Applies`, or mend the line in the series.",
            )
        return fitting[0] if fitting else None


def source_of(file: PatchedFile) -> str:
    """Return the path of the file that a diff changes, as in a wheel: `sglang/...`."""
    return str(file.source_file).removeprefix("a/")


def variants_of(hooks: Iterable[Hook], version: str) -> list[Patch]:
    """Return the variants that a release takes, in the order of the hooks.

    Raises PatchError as `Hook.variant` does.
    """
    return [patch for hook in hooks if (patch := hook.variant(version))]


def target_of(file: PatchedFile) -> str:
    """Return the path that the file has afterwards; of one that the diff deletes, the one that it had."""
    return source_of(file) if deletes(file) else str(file.target_file).removeprefix("b/")


def deletes(file: PatchedFile) -> bool:
    """Tell whether a diff deletes a file, rather than empties it."""
    return bool(file.target_file == "/dev/null")


def renames(file: PatchedFile) -> bool:
    """Tell whether a diff gives a file another name."""
    return source_of(file) != target_of(file)


def modes_of(file: PatchedFile) -> tuple[bool, bool] | None:
    """Return whether the file is executable before and after the diff, None if that does not change."""
    found = re.search(r"^old mode (\d+)\nnew mode (\d+)$", str(file.patch_info), re.MULTILINE)
    return (found[1] == EXECUTABLE, found[2] == EXECUTABLE) if found else None


def blob_of(file: PatchedFile) -> str:
    """Return the id that git gives the content which a diff expects; "" where its hunks say what they expect."""
    found = re.search(r"^index ([0-9a-f]+)\.\.", str(file.patch_info), re.MULTILINE)
    return found[1] if found and not len(file) else ""


def blob_id(content: bytes) -> str:
    """Return the id that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def split_lines(content: bytes) -> list[str]:
    """Return the lines of a file; `join_lines` makes the file of them again, to the byte."""
    return content.decode("utf-8", "surrogateescape").split("\n")


def join_lines(lines: Iterable[str]) -> bytes:
    """Return the file that has these lines."""
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def lines_with_ends(lines: Sequence[str]) -> list[str]:
    """Return the lines of a file, or of the end of one, each with its line end: the last can be without."""
    ended = [*(f"{line}\n" for line in lines[:-1]), *lines[-1:]]
    return ended if ended[-1:] != [""] else ended[:-1]


def sides(hunk: Hunk) -> tuple[list[str], list[str]]:
    """Return the lines of a hunk before and after it, as `split_lines` gives those of a file.

    At the end of a file they end as the file does: with "" where its last line has a line end.
    """
    texts = {"-": "", "+": ""}
    last = ""  # the sides that have the last line
    for line in hunk:
        if line.line_type == "\\":  # it had no line end
            texts |= {side: texts[side].removesuffix("\n") for side in last}
        elif line.line_type:
            last = "-+" if line.is_context else line.line_type
            texts |= {side: texts[side] + line.value for side in last}
    before, after = (text.split("\n") for text in texts.values())
    return (before, after) if ends_file(hunk) else (before[:-1], after[:-1])


def begins_file(hunk: Hunk) -> bool:
    """Tell whether a hunk was made at the beginning of a file: it changes the first line, or what comes before it."""
    return hunk.source_start <= 1 and not hunk[0].is_context


def ends_file(hunk: Hunk) -> bool:
    """Tell whether a hunk was made at the end of a file: it has no context after its changes, or no line end."""
    return not [line for line in hunk if line.line_type][-1].is_context


def locate_file(patch: Patch, file: PatchedFile) -> str:
    """Return where a file's part of the diff begins, as the patch file and the line of its `diff --git`."""
    return f"{patch.path}:{patch.first_line + file.diff_line_no - 1}"


def locate(patch: Patch, hunk: Hunk) -> str:
    """Return where a hunk begins, as the patch file and the line of its @@."""
    return f"{patch.path}:{patch.first_line + hunk[0].diff_line_no - 2}"
