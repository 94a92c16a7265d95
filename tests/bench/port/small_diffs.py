"""Small texts and what a few changes make of them, at random: the empty, the repeated, and what looks like a diff."""

from __future__ import annotations

import random

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
