"""Where the hunks of a patch belong in another release: found exactly, or else only proposed.

A hunk is followed from a release that it applies to (`old`) into one that it is tried on (`new`). What does not stand
there unchanged, in the same function, is merged function by function, so that no proposal leaves the function that its
hunk stood in; where that function is gone, the lines and then the function are looked for in the other files.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from overlay_tools.upstream.source_tree import Sources


@dataclass(frozen=True, slots=True)
class Tree:
    """A release's files with some of the series applied: `touched`, by path, goes before `sources`."""

    sources: Sources
    touched: dict[str, bytes] = field(default_factory=dict)

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None if there is none."""
        return self.touched[name] if name in self.touched else self.sources.read(name)
