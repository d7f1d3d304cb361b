"""How a run receives SIGINT, SIGTERM and SIGHUP: from Ctrl-C, `launcher stop`, Ray's `stop_job` or a closed terminal.

    from the start         the first one is remembered, the second raises KeyboardInterrupt
    raise_from_now()       raises KeyboardInterrupt, at once if one is remembered
    count_from_now()       only counted; `take` gives the number

Ray must not be cut off while it starts: what it has launched so far, such as its GCS server, would be left behind
without a parent. Hence the first stage. From then until the workers run there is nothing to wind down, and leaving the
blocks that are entered ends everything, so an exception is the shortest way out. After that the supervisor has to end
the workers in order, and an exception in the middle of its loop would lose events.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Handlers for the time of a block; the ones before are restored at its end. Signal handlers run between two byte
    codes of the main thread, so the counter needs no lock."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._count = 0
        self._tolerated = 1
        """How many signals are counted before the next one raises."""

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
        self._install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def raise_from_now(self) -> None:
        """Begin the second stage.

        Raises:
            KeyboardInterrupt: a signal has come already.
        """
        self._install()  # again, since Ray installs a SIGTERM handler of its own when it starts
        self._tolerated = 0
        if self._count:
            raise KeyboardInterrupt

    def count_from_now(self) -> None:
        """Begin the third stage."""
        self._tolerated = sys.maxsize

    def take(self) -> int:
        """Number of signals since the last call."""
        count, self._count = self._count, 0
        return count

    def _install(self) -> None:
        for number in _STOP_SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count > self._tolerated:
            # Raise once: the second Ctrl-C of an impatient user must not interrupt the cleanup that the first one
            # began.
            self._tolerated = sys.maxsize
            raise KeyboardInterrupt
