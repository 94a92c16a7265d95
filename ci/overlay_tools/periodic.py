"""Something that is done over and over, beside what a block does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_INTERVAL = 1.0  # seconds


@contextmanager
def every_second(look: Callable[[], object]) -> Iterator[None]:
    """Call `look` once a second, in a thread of its own, until the block is over."""
    over = threading.Event()

    def keep_looking() -> None:
        while not over.wait(_INTERVAL):
            look()

    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
