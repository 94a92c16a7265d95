"""Small files and what is done to them, at random: the empty, the repeated, and what looks like a diff."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from overlay_tools.archive.mode import with_mode

WORDS = [
    "a", "b", "c", "", "    a = 1", "    b = 2", "}", "x\u2028y", "p\x0cq", "\x0c", "-- a/x", "++ b/x", "@@ -1 +1 @@",
    "diff --git a/x b/x", "\\ No newline at end of file", "index 12..34",
]  # fmt: skip


def random_pair(draw: random.Random) -> tuple[bytes, bytes]:
    """Return a small text and what a few changes make of it."""
    words, end = draw.sample(WORDS, draw.choice([1, 2, 3, len(WORDS)])), draw.choice(["\n", "\n", "\n", "\r\n"])
    old = [draw.choice(words) + end for _ in range(draw.choice([0, 0, 1, 2, 3, 5, 8, 13, 30]))]
    new = list(old)
    for _ in range(draw.choice([1, 1, 2, 3, 6])):
        start = draw.randint(0, len(new))
        stop = min(len(new), start + draw.choice([0, 0, 1, 2, len(new)]))
        new[start:stop] = [draw.choice(words) + end for _ in range(draw.choice([0, 1, 1, 2, 4]))]
    texts = ("".join(lines) for lines in (old, new))
    before, after = (text.removesuffix(end) if draw.random() < 0.25 else text for text in texts)
    return before.encode(), after.encode()


@dataclass(kw_only=True, slots=True)
class Change:
    """Files before and after a change, None for those that are gone, and the old names of the renamed ones."""

    before: dict[str, bytes] = field(default_factory=dict)
    after: dict[str, bytes | None] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    @property
    def touched(self) -> dict[str, bytes | None]:
        return {name: data for name, data in self.after.items() if data != self.before.get(name)}

    def add(self, draw: random.Random, name: str) -> None:
        """Change a file, or delete it, rename it and change its mode, with or without its lines."""
        old, new = random_pair(draw)
        kinds = draw.choice([["lines"], ["lines"], ["delete"], ["rename"], ["mode"], ["lines", "rename", "mode"]])
        mode = draw.random() < 0.2
        self.before[name] = with_mode(old, executable=mode)
        made = with_mode(new if "lines" in kinds else old, executable=mode != ("mode" in kinds))
        if "rename" in kinds:
            self.renamed[target := f"sglang/to/{name[7:]}"] = name
            self.after |= {name: None, target: made}
        else:
            self.after[name] = None if "delete" in kinds else made
