"""Where a hunk belongs in another release: strategies, tried in order; the first that has an answer gives it.

What does not stand there unchanged, in the same function, is merged function by function, so that no proposal leaves
the function that the hunk stood in; where that function is gone, the lines and then the function are looked for in the
other files.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

from overlay_tools.patches.code_spans import text_of_scope
from overlay_tools.patches.lookalikes import find_lookalikes
from overlay_tools.patches.moving_hunk import MovingHunk, Placement

_MOST = 0.5  # of a hunk's lines: with more of them upstream, it is not applied unseen
Strategy = Callable[[MovingHunk], Placement | None]


def place_hunk(hunk: MovingHunk) -> Placement:
    """Return where a hunk belongs, or that its target is gone."""
    found = next((placement for strategy in _STRATEGIES if (placement := strategy(hunk))), None)
    gone = f"function {hunk.scope} is gone" if hunk.new and hunk.scope else f"{hunk.name} is gone"
    return found or hunk.placed("target gone", gone)


def already_upstream(hunk: MovingHunk) -> Placement | None:
    """Say that the release has made the whole change itself."""
    if hunk.upstream_share < 1:
        return None
    return hunk.placed("upstream", "the release has these lines already; where it has the whole hook, drop it")


def standing_but_added_upstream(hunk: MovingHunk) -> Placement | None:
    """Propose the place of a hunk of which the release has added most, or a name that it adds: a method, an import."""
    if hunk.new is None or len(hunk.own_places) != 1:
        return None
    if hunk.names_upstream:
        note = f"the release has added {', '.join(hunk.names_upstream)} too"
    elif hunk.upstream_share > _MOST:
        note = _upstream_note(hunk)
    else:
        return None
    (place,) = hunk.own_places
    return hunk.placed("half-upstream", note, hunk.propose(hunk.name, place), line=hunk.new.line_number(place))


def unchanged_in_its_function(hunk: MovingHunk) -> Placement | None:
    """Settle a hunk whose lines stand in its file once, in the function where they stood."""
    if hunk.new is None or len(hunk.places) != 1 or not hunk.own_places:
        return None
    (place,) = hunk.own_places
    line = hunk.new.line_number(place)
    # From where the hunks before it have put it; of a file that the hunk empties, its lines began at the first.
    offset = line - max(hunk.hunk.target_start, 1)
    note = _compare(hunk.old, hunk.new.lines, hunk.scope)
    return hunk.placed(f"offset {offset}" if offset else "exact", note, hunk.settle(place), line=line)


def one_of_several_in_its_function(hunk: MovingHunk) -> Placement | None:
    """Propose the one place in its function of a hunk whose lines stand elsewhere in its file too."""
    if hunk.new is None or len(hunk.own_places) != 1:
        return None
    (place,) = hunk.own_places
    lines = ", ".join(str(hunk.new.line_number(every)) for every in hunk.places)
    note = f"fits at lines {lines}; it needs more context"
    return hunk.placed("conflict", note, hunk.propose(hunk.name, place), line=hunk.new.line_number(place))


def merged_within_its_function(hunk: MovingHunk) -> Placement | None:
    """Propose the hunk merged into its function, where nothing conflicts and nothing of it is upstream."""
    if hunk.upstream_share or hunk.merged is None or not hunk.merged.clean:
        return None
    note = "lines around it changed; merged within the function"
    return hunk.placed("conflict", note, hunk.merged.edit, line=hunk.merged.line)


def partly_upstream(hunk: MovingHunk) -> Placement | None:
    """Propose what the release has not made itself of the change, merged into its function if there is one."""
    if not hunk.upstream_share:
        return None
    edit, line = (hunk.merged.edit, hunk.merged.line) if hunk.merged else (None, 0)
    return hunk.placed("half-upstream", _upstream_note(hunk), edit, line=line)


def in_another_function(hunk: MovingHunk) -> Placement | None:
    """Propose the one place of its file where the lines stand, in another function."""
    if hunk.new is None or len(hunk.places) != 1:
        return None
    (place,) = hunk.places
    edit, scope = hunk.propose(hunk.name, place), hunk.scope_at(hunk.new, place)
    note = f"from {hunk.scope or 'the top level'}"
    return hunk.placed("moved", note, edit, line=hunk.new.line_number(place), scope=scope)


def in_another_file(hunk: MovingHunk) -> Placement | None:
    """Propose the one place of all other files where the lines stand, and did not stand beside the hunk's before."""
    if len(hunk.other_places) != 1:
        return None
    ((name, file, place),) = hunk.other_places
    note = f"from {hunk.name}{'' if hunk.new else ', which is gone'}"
    edit, scope = hunk.propose(name, place), hunk.scope_at(file, place)
    return hunk.placed("moved", note, edit, line=file.line_number(place), scope=scope)


def conflicting_within_its_function(hunk: MovingHunk) -> Placement | None:
    """Propose the hunk merged into its function, what conflicts left to a person."""
    if hunk.merged is None:
        return None
    return hunk.placed("conflict", "the lines that it changes have changed", hunk.merged.edit, line=hunk.merged.line)


def in_a_function_like_its_own(hunk: MovingHunk) -> Placement | None:
    """Propose the hunk merged into what its function has become, under another name or in another file."""
    for name, scope in find_lookalikes(hunk):
        merged = hunk.merge_into(name, scope)
        if merged is not None and merged.clean:
            note = f"from {hunk.name}, {hunk.scope or 'the top level'}"
            return hunk.placed("moved", note, merged.edit, line=merged.line, scope=scope)
    return None


_STRATEGIES: Sequence[Strategy] = (
    already_upstream,
    standing_but_added_upstream,
    unchanged_in_its_function,
    one_of_several_in_its_function,
    merged_within_its_function,
    partly_upstream,
    in_another_function,
    in_another_file,
    conflicting_within_its_function,
    in_a_function_like_its_own,
)


def _upstream_note(hunk: MovingHunk) -> str:
    return f"the release has {hunk.upstream_share:.0%} of the hunk's lines already"


def _compare(old: Sequence[str], new: Sequence[str], scope: str) -> str:
    """Say how the function around a hunk differs between the releases."""
    if not scope:
        return "top level of the file"
    matcher = difflib.SequenceMatcher(None, text_of_scope(old, scope), text_of_scope(new, scope), autojunk=False)
    changes = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    more, fewer = sum(j2 - j1 for *_, j1, j2 in changes), sum(i2 - i1 for _, i1, i2, *_ in changes)
    return f"{scope} changed, +{more}/-{fewer}" if more or fewer else f"{scope} unchanged"
