"""Signals that ask a command to end become exceptions, so that it clears up as one that fails does."""

from __future__ import annotations

import signal
import time

_AT_ONCE = 1.0  # seconds within which signals are one: `timeout` sends its own to a process and to its group


class Interrupted(KeyboardInterrupt):
    """Report that a signal asks this command to end, other than by Ctrl-C."""


class Interruption:
    """The signal that has asked this process to end: SIGINT, SIGTERM or SIGHUP.

    Each becomes an exception in the main thread from now on. One that is ignored, as SIGHUP under nohup, stays so.
    """

    def __init__(self) -> None:
        self.number, self._at = signal.SIGINT, float("-inf")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._raise)

    def _raise(self, number: int, frame: object) -> None:
        again = self._at > float("-inf")
        if again and (number != signal.SIGINT or time.monotonic() - self._at < _AT_ONCE):
            return  # let it clear up; only a second Ctrl-C says that someone cannot wait
        self.number, self._at = signal.Signals(number), time.monotonic()
        raise KeyboardInterrupt if number == signal.SIGINT else Interrupted
