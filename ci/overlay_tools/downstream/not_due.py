"""Hooks that are not due at a new release, and may be needed there: which are asked about, and the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from packaging.version import Version

# Asks whether a release takes a hook, given its name and what was found; None is no answer.
Ask = Callable[[str, str], bool | None]


class NotDue:
    """What a person says of such hooks.

    Parameters: `taken` and `left`, the answers so far; `ask`, None if no one is there to ask.
    `open` names those without an answer.
    """

    def __init__(self, taken: Sequence[str], left: Sequence[str], ask: Ask | None) -> None:
        self.taken, self.left = list(taken), list(left)
        self.open: list[str] = []
        self._ask = ask

    def takes(self, hook: str, found: str) -> bool:
        """Tell whether the release takes a hook that fits there."""
        if hook not in self.left:
            answer = self._ask(hook, found) if self._ask else None
            (self.open if answer is None else self.taken if answer else self.left).append(hook)
        return hook in self.taken


def is_near(version: str, taking: Sequence[str], locked: Iterable[str]) -> bool:
    """Tell whether a release is between two that take a hook, next to one, or a post release beside one."""
    this, takes = Version(version), [Version(other) for other in taking]
    order = sorted({this, *map(Version, locked)})
    at = order.index(this)
    next_to = [*order[max(at - 1, 0) : at], *order[at + 1 : at + 2]]
    return min(takes) < this < max(takes) or any(
        other in next_to or other.base_version == this.base_version for other in takes
    )
