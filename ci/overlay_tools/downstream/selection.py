"""Which hooks a person means by `--take`, `--leave` and `--drop`: each a name, or a pattern of several."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from overlay_tools.patches.model import HOOK_NAME, Hook


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a person said: hooks that a release takes though they are not due, does not take, or takes no longer."""

    take: Sequence[str] = ()
    leave: Sequence[str] = ()
    drop: Sequence[str] = ()


NOTHING = Wanted()


@dataclass(kw_only=True, slots=True)
class Selection:
    """The hooks that were meant, in the order of the series, and in `faults` what is wrong with what was said."""

    taken: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def select(hooks: Sequence[Hook], version: str, wanted: Wanted, taken: Collection[str] = ()) -> Selection:
    """Return which hooks are meant at a release.

    Parameters: `taken`, those that it takes already though they are not due.
    A name goes before a pattern, and of two patterns the one of `--leave` before that of `--take`.
    """
    names = [hook.name for hook in hooks]
    due = [hook.name for hook in hooks if hook.due.contains(version, prereleases=True)]
    others = [name for name in names if name not in due]
    known = {"due": [*due, *(name for name in others if name in taken)], "not due": others}
    found = Selection()
    for words, what in ((wanted.take, "not due"), (wanted.leave, "not due"), (wanted.drop, "due")):
        found.faults += [fault for word in words if (fault := _fault(word, names, known[what], what, version))]
    for name in others:
        take, leave = _rank(name, wanted.take), _rank(name, wanted.leave)
        if take > leave:
            found.taken.append(name)
        elif leave:
            found.left.append(name)
    found.dropped = [name for name in names if name in known["due"] and _rank(name, wanted.drop)]
    return found


def _rank(name: str, words: Sequence[str]) -> int:
    """Return 2 if a hook is named, 1 if a pattern matches it, otherwise 0."""
    return 2 if name in words else int(any(fnmatchcase(name, word) for word in words))


def _fault(word: str, names: Sequence[str], known: Sequence[str], what: str, version: str) -> str:
    """Return what is wrong with a word for hooks that are to be among the `known`, or ""."""
    if not HOOK_NAME.fullmatch(word):
        if any(fnmatchcase(name, word) for name in known):
            return ""
        return f"No hook that is {what} at sglang {version} matches {word!r}."
    if word not in names:
        return f"There is no hook {word}; there are {', '.join(names)}."
    return "" if word in known else f"Hook {word} is {'due' if what == 'not due' else 'not due'} at sglang {version}."
