"""A release's files with some of the series applied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from overlay_tools.patches.apply import apply_series
from overlay_tools.patches.model import Hook, variants_of
from overlay_tools.upstream.source_tree import SourceTree


@dataclass(frozen=True, slots=True)
class HookedTree:
    """A release's files with hooks applied: `touched`, by path, None for what is gone, goes before `sources`."""

    sources: SourceTree
    touched: dict[str, bytes | None] = field(default_factory=dict)

    @classmethod
    def apply(cls, sources: SourceTree, hooks: Sequence[Hook]) -> HookedTree:
        """Apply hooks, in order, to a release's files.

        Raises PatchError if one does not apply exactly.
        """
        patches = variants_of(hooks, sources.version)
        return cls(sources, apply_series(patches, sources.read, f"sglang {sources.version}"))

    @property
    def names(self) -> Sequence[str]:
        """Return the paths of the Python files under sglang/."""
        gone = None in self.touched.values()  # without that no hook has renamed a file either
        return self.sources.changed(self.touched).names if gone else self.sources.names

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None if there is none."""
        return self.touched[name] if name in self.touched else self.sources.read(name)
