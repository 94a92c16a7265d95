"""What a hook needs of others: the names that they bring or change, and the files that they change with it."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import PurePosixPath

from unidiff import PatchSet

from overlay_tools.downstream.committed_hooks import CommittedHook
from overlay_tools.downstream.diff import make_diff
from overlay_tools.downstream.foreign_patch import ForeignPatch
from overlay_tools.patches.code_spans import find_spans
from overlay_tools.patches.model import Patch, renames, source_of, split_lines, target_of

_NAME = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True, kw_only=True, slots=True)
class HookNames:
    """What a hook's lines say.

    `files`: those that it changes; `brings`: names that no line of them had before, and those of the functions and
    classes that it changes; `uses`: all names on the lines that it adds.
    """

    files: Set[str]
    brings: Set[str]
    uses: Set[str]

    def needs(self, other: HookNames, *, changed: bool) -> bool:
        """Tell whether this hook may need one before it.

        Parameters: `changed`, whether the other is new or changed too: then a file that both change is enough, for
        what it was changed for is not known.
        """
        return bool(self.uses & other.brings) or (changed and bool(self.files & other.files))


def read_names(hook: CommittedHook, old: Patch | None) -> HookNames:
    """Read the names on a hook's lines.

    Parameters: `old`, the variant that it was until now: what that used already is no new need.
    """
    brings, uses = set[str](), set[str]()
    for file in PatchSet.from_string(make_diff(hook.before, hook.after, hook.renamed)):
        if renames(file):  # then others can import it by this name
            brings |= _names(PurePosixPath(target_of(file)).stem)
        if not len(file):
            continue
        sides = hook.before[source_of(file)], hook.after[target_of(file)]
        texts = [(data or b"").decode("utf-8", "surrogateescape") for data in sides]
        brings |= _names(texts[True]) - _names(texts[False])
        for line in (line for hunk in file for line in hunk if not line.is_context):
            number = line.target_line_no if line.is_added else line.source_line_no
            if number is not None:
                spans = find_spans(texts[line.is_added])
                brings |= _names(" ".join(span.name for span in spans if span.first < number <= span.end))
            if line.is_added:
                uses |= _names(line.value)
    before = (line.value for file in old.files for hunk in file for line in hunk if line.is_added) if old else ()
    uses -= _names("\n".join(before))
    return HookNames(files=set(hook.after), brings={n for n in brings if not n.startswith("__")}, uses=uses)


def read_patch_names(patch: ForeignPatch, read: Callable[[str], bytes | None]) -> HookNames:
    """Read what a patch that does not apply would bring: names on lines that it adds, and nowhere in its files.

    Parameters: `read` gives the content of a file as it is, None if there is none.
    """
    brings = set[str]()
    for change in patch.files:
        lines = change.diff.split("\n")
        added = [line[1:] for line in lines if line.startswith("+")]
        others = [line for line in lines if not line.startswith("+")]
        for content, known in ((change.content, added), (read(change.name), others)):
            known += split_lines(content or b"")
        brings |= _names("\n".join(added)) - _names("\n".join(others))
        brings |= _names(PurePosixPath(change.target).stem)
    files = {name for change in patch.files for name in (change.name, change.target) if name}
    return HookNames(files=files, brings=brings, uses=set())


def _names(text: str) -> set[str]:
    return {name for name in _NAME.findall(text) if not keyword.iskeyword(name)}
