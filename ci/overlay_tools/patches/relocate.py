"""Where the hunks of a patch belong in another release: found exactly, or else only proposed.

A hunk is followed from a release that it applies to (`old`) into one that it is tried on (`new`). What does not stand
there unchanged, in the same function, is merged function by function, so that no proposal leaves the function that its
hunk stood in; where that function is gone, the lines and then the function are looked for in the other files.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from unidiff import Hunk

from overlay_tools.patches.apply import find_block
from overlay_tools.patches.code_spans import around, lines_of, part_of, range_of, scopes
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.model import Patch, locate, sides, target_of
from overlay_tools.patches.three_way_merge import Merged, Region, merge

_TELLING = 8  # how many of a function's lines, the longest, tell whether a file may hold it
_ALIKE = 0.6  # how alike two functions or files must be for one to be taken for the other, renamed
_MARK = "# sglang-overlay: region {} {}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """What became of one hunk.

    `where`: the hunk, as patch file and line; `file`, `line` and `scope`: where it stands in the new release (the
    dotted name of the function or class, "" at a file's top level); `outcome`: exact, offset N, moved, upstream,
    half-upstream, conflict or target gone; `note`: what was found; `proposed`: whether there is a place to review.
    """

    where: str
    file: str
    line: int
    scope: str
    outcome: str
    note: str
    proposed: bool = False

    @property
    def settled(self) -> bool:
        """Tell whether the hunk applies exactly, in the function where it stood."""
        return self.outcome.split()[0] in ("exact", "offset")


@dataclass(frozen=True, kw_only=True, slots=True)
class RelocatedPatch:
    """What became of a patch.

    `files`: the files that it touches, with what settled and what is proposed; `marked`: the same files with conflict
    markers around everything that a person is to look at.
    """

    patch: Patch
    placements: Sequence[Placement]
    files: dict[str, bytes]
    marked: dict[str, bytes]

    @property
    def settled(self) -> bool:
        """Tell whether every hunk is settled."""
        return all(placement.settled for placement in self.placements)


def relocate(patch: Patch, old: HookedTree, new: HookedTree) -> RelocatedPatch:
    """Follow a patch from a release that it applies to into another one.

    Parameters: `old` and `new`, both with the hooks before this one applied.
    """
    placer = _Relocator(patch, old, new)
    placements = [placer.hunk(target_of(file), hunk) for file in patch.files for hunk in file]
    touched = {name: lines for name, lines in placer.new.items() if _joined(lines) != new.read(name)}
    return RelocatedPatch(
        patch=patch,
        placements=placements,
        files={name: _joined(line for line in lines if not placer.is_mark(line)) for name, lines in touched.items()},
        marked={name: _joined(placer.with_markers(lines)) for name, lines in touched.items()},
    )


class _Relocator:
    """Follows hunks one after the other; `old` and `new` hold the files as they are after those before."""

    def __init__(self, patch: Patch, old: HookedTree, new: HookedTree) -> None:
        self._patch, self._old_tree, self._new_tree = patch, old, new
        self.old: dict[str, list[str]] = {}
        self.new: dict[str, list[str]] = {}
        self._regions: list[Region] = []

    def hunk(self, name: str, hunk: Hunk) -> Placement:
        """Place one hunk of the file `name`, and apply it to the files where it is settled or proposed."""
        before, after = sides(hunk)
        old = self.old.setdefault(name, lines_of(self._old_tree.read(name) or b""))
        at = min((place - 1 for place in find_block(old, before)), key=lambda place: abs(place - hunk.target_start + 1))
        scope = _scope_at(old, at, hunk)
        patched = [*old[:at], *after, *old[at + len(before) :]]
        self.old[name] = patched
        where = locate(self._patch, hunk)

        def placed(outcome: str, note: str, file: str = name, line: int = 0, found: str = scope) -> Placement:
            return Placement(
                where=where, file=file, line=line, scope=found, outcome=outcome, note=note, proposed=bool(line)
            )

        def moved() -> Placement | None:
            elsewhere = self._elsewhere(name, before)
            if elsewhere is None:
                return None
            file, place = elsewhere
            there = self._read(file) or []
            line, other = self._number(there, place), _scope_at(there, place, hunk)
            self._propose(file, place, place + len(before), after)
            return placed("moved", f"from {name}{', which is gone' * (new is None)}", file, line, other)

        new = self._read(name)
        if new is not None:
            found = [place - 1 for place in find_block(new, before)]
            same = [place for place in found if _scope_at(new, place, hunk) == scope]
            if len(found) == 1 and same:
                self.new[name] = [*new[: same[0]], *after, *new[same[0] + len(before) :]]
                line = self._number(new, same[0])
                offset = line - hunk.target_start  # where the hunks before it have put it
                return placed(f"offset {offset}" if offset else "exact", _compare(old, new, scope), line=line)
            if len(same) == 1:
                self._propose(name, same[0], same[0] + len(before), after)
                lines = ", ".join(str(self._number(new, place)) for place in found)
                many = f"fits at lines {lines}; it needs more context"
                return placed("conflict", many, line=self._number(new, same[0]))
            share = _share_upstream(hunk, part_of(old, scope), part_of(new, scope))
            if share == 1:
                return placed("upstream", "the release has these lines already; where it has the whole hook, drop it")
            merged = self._merge(old, patched, scope, name, scope)
            if merged is not None and share == 0 and merged[1].clean:
                return placed(
                    "conflict", "lines around it changed; merged within the function", line=self._accept(name, *merged)
                )
            if share:
                line = self._accept(name, *merged) if merged else 0
                return placed("half-upstream", f"the release has {share:.0%} of the hunk's lines already", line=line)
            if len(found) == 1:
                other = _scope_at(new, found[0], hunk)
                self._propose(name, found[0], found[0] + len(before), after)
                line = self._number(new, found[0])
                return placed("moved", f"from {scope or 'the top level'}", line=line, found=other)
            if (elsewhere := moved()) is not None:
                return elsewhere
            if merged is not None:
                return placed("conflict", "the lines that it changes have changed", line=self._accept(name, *merged))
        elif (elsewhere := moved()) is not None:
            return elsewhere
        for file, other in self._likely(name, old, scope):
            merged = self._merge(old, patched, scope, file, other)
            if merged is not None and merged[1].clean:
                return placed(
                    "moved", f"from {name}, {scope or 'the top level'}", file, self._accept(file, *merged), other
                )
        gone = f"function {scope} is gone" if new is not None and scope else f"{name} is gone"
        return placed("target gone", gone)

    def is_mark(self, line: str) -> bool:
        """Tell whether a line is one that `with_markers` replaces."""
        return line.startswith(_MARK.partition("{}")[0])

    def with_markers(self, lines: Sequence[str]) -> Iterator[str]:
        """Yield the lines with conflict markers where regions are noted."""
        inside = False
        for line in lines:
            if not self.is_mark(line):
                if not inside:
                    yield line
                continue
            number, edge = line.split()[-2:]
            inside = edge == "begins"
            if inside:
                region = self._regions[int(number)]
                yield f"{'<' * 7} sglang {self._new_tree.sources.version}"
                yield from region.ours
                if region.base:
                    yield f"{'|' * 7} sglang {self._old_tree.sources.version}"
                    yield from region.base
                yield "=" * 7
                yield from region.theirs
                yield f"{'>' * 7} {self._patch.hook}"

    def _read(self, name: str) -> list[str] | None:
        if name not in self.new:
            data = self._new_tree.read(name)
            if data is None:
                return None
            self.new[name] = lines_of(data)
        return self.new[name]

    def _number(self, lines: Sequence[str], index: int) -> int:
        """Return the number of a line, counted from 1, as it is without the marks before it."""
        return index + 1 - sum(map(self.is_mark, lines[:index]))

    def _note(self, region: Region, lines: Sequence[str]) -> list[str]:
        number = len(self._regions)
        self._regions.append(region)
        return [_MARK.format(number, "begins"), *lines, _MARK.format(number, "ends")]

    def _propose(self, name: str, start: int, end: int, after: Sequence[str]) -> None:
        """Put `after` in the place of lines, as a region to look at."""
        lines = self._read(name) or []
        region = Region(ours=lines[start:end], theirs=after)
        self.new[name] = [*lines[:start], *self._note(region, after), *lines[end:]]

    def _merge(
        self, old: Sequence[str], patched: Sequence[str], old_scope: str, name: str, scope: str
    ) -> tuple[range, Merged] | None:
        """Merge what the hunk does to its function into a function of the new release, if there is one of the name.

        Returns that function's lines, counted from 0, and what they become.
        """
        new = self._read(name)
        target = None if new is None else range_of(new, scope)
        base, theirs = part_of(old, old_scope), part_of(patched, old_scope)
        if new is None or target is None or not base or not theirs:
            return None
        return target, merge(new[target.start : target.stop], base, theirs)

    def _accept(self, name: str, target: range, merged: Merged) -> int:
        """Take over a merge, what it changed noted as regions; return the first line of the first, counted from 1."""
        lines = self._read(name) or []
        body: list[str] = []
        first = 0
        for part in merged.parts(lines[target.start : target.stop]):
            if isinstance(part, Region):
                first = first or self._number([*lines[: target.start], *body], target.start + len(body))
                body += self._note(part, part.theirs if merged.clean else part.ours)
            else:
                body += part
        self.new[name] = [*lines[: target.start], *body, *lines[target.stop :]]
        return first

    def _elsewhere(self, name: str, before: Sequence[str]) -> tuple[str, int] | None:
        """Return the one other file where a hunk's lines stand, and the line, counted from 0."""
        key = max(before, key=lambda line: len(line.strip())).encode("utf-8", "surrogateescape")
        found = [
            (other, place - 1)
            for other in self._new_tree.sources.names
            if other != name and key in (self._new_tree.read(other) or b"")
            for place in find_block(self._read(other) or [], before)
        ]
        return found[0] if len(found) == 1 and any(line.strip() for line in before) else None

    def _likely(self, name: str, old: Sequence[str], scope: str) -> Iterator[tuple[str, str]]:
        """Yield files and functions that the hunk's own may have become, the likeliest first."""
        tree, part, last = self._new_tree, part_of(old, scope), _last(scope)
        known = set(self._old_tree.sources.names)
        if scope:
            # To read is cheap, to parse is not: only a file with the name and many of the lines is parsed.
            telling = sorted({line.strip() for line in part}, key=len)[-_TELLING:]
            words = [word.encode("utf-8", "surrogateescape") for word in (f" {last}", *telling)]
            held = {other: sum(word in (tree.read(other) or b"") for word in words) for other in tree.sources.names}
            files = [other for other in held if other == name or held[other] > len(words) * _ALIKE / 2]
        else:
            files = [other for other in tree.sources.names if other not in known]
        names = {found.name for found in scopes("\n".join(old))}
        ranked = []
        for other in files:
            lines = self._read(other) or []
            found = [s.name for s in scopes("\n".join(lines))] if scope else [""]
            # A function of its own file that is new there may be the old one under another name.
            likely = [s for s in found if _last(s) == last or (other == name and s not in names)]
            ranked += [(_likeness(part, part_of(lines, s)), other, s) for s in likely]
        for alike, other, found_scope in sorted(ranked, reverse=True):
            if alike >= _ALIKE and (other, found_scope) != (name, scope):
                yield other, found_scope


def _share_upstream(hunk: Hunk, old: Sequence[str], new: Sequence[str]) -> float:
    """Return which part of a hunk's change the new release has made itself, from 0 to 1.

    A line that the hunk adds counts as there if its function has it now and had it less often before; of a hunk that
    only takes lines away, a line counts as gone. Blank lines say nothing.
    """
    added = [line.value.strip() for line in hunk if line.is_added and line.value.strip()]
    removed = [line.value.strip() for line in hunk if line.is_removed and line.value.strip()]
    was, is_ = ([line.strip() for line in lines] for lines in (old, new))
    if added:
        return sum(is_.count(line) > was.count(line) for line in added) / len(added)
    return sum(is_.count(line) < was.count(line) for line in removed) / max(1, len(removed)) if new else 0


def _compare(old: Sequence[str], new: Sequence[str], scope: str) -> str:
    """Say how the function around a hunk differs between the releases."""
    if not scope:
        return "top level of the file"
    matcher = difflib.SequenceMatcher(None, part_of(old, scope), part_of(new, scope), autojunk=False)
    changes = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    more, fewer = sum(j2 - j1 for *_, j1, j2 in changes), sum(i2 - i1 for _, i1, i2, *_ in changes)
    return f"{scope} changed, +{more}/-{fewer}" if more or fewer else f"{scope} unchanged"


def _scope_at(lines: Sequence[str], at: int, hunk: Hunk) -> str:
    """Return the name of the innermost scope around all that a hunk changes at a line, of those there before it."""
    before, after = sides(hunk)
    patched = [*lines[:at], *after, *lines[at + len(before) :]]
    added = [n for n, line in enumerate(line for line in hunk if not line.is_removed) if line.is_added]
    removed = [n for n, line in enumerate(line for line in hunk if not line.is_added) if line.is_removed]
    changed = [(patched, at + n) for n in added] + [(lines, at + n) for n in removed]
    changed = [(text, n) for text, n in changed if text[n].strip()] or changed
    names = [around(text, n) for text, n in changed]
    common = {scope.name for scope in scopes("\n".join(lines))}.intersection(*names)
    return next((name for name in reversed(names[0]) if name in common), "")


def _joined(lines: Iterable[str]) -> bytes:
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def _last(scope: str) -> str:
    return scope.rpartition(".")[2].partition("#")[0]


def _likeness(old: Sequence[str], new: Sequence[str]) -> float:
    a, b = ({line.strip() for line in lines if line.strip()} for lines in (old, new))
    return 2 * len(a & b) / max(1, len(a) + len(b))
