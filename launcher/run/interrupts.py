"""What a run does when the user, or whoever else, wants it to end."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP, in three stages. While Ray comes up, the first one waits, since a Ray that is cut off
    in the middle leaves processes behind. Then, until the workers run, one raises KeyboardInterrupt. After that they
    are only counted, so that nothing is cut off, and `take` gives how many came."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._count = 0
        self._patience = 1

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
        self._install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def raise_from_now(self) -> None:
        """The second stage: raises at once if there was one already."""
        self._install()  # once more, as Ray takes SIGTERM for itself when it starts
        self._patience = 0
        if self._count:
            raise KeyboardInterrupt

    def count_from_now(self) -> None:
        """The third stage."""
        self._patience = sys.maxsize

    def take(self) -> int:
        """How many came since the last call."""
        count, self._count = self._count, 0
        return count

    def _install(self) -> None:
        for number in _STOP_SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count > self._patience:
            self._patience = sys.maxsize
            raise KeyboardInterrupt
