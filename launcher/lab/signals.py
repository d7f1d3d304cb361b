"""SIGINT, SIGTERM and SIGHUP: how they end a command of the lab, and when they have to wait.

By default SIGTERM and SIGHUP kill a Python process without running any `finally`, and a lab would stay behind.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Turn a signal into SystemExit with status 128 + its number, as shells have it, so that cleanup runs."""
    with _handled(lambda number, _: sys.exit(128 + number)):
        yield


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Ignore signals during cleanup, which takes some seconds at most. An impatient second Ctrl-C would otherwise leave
    half of the lab."""
    with _handled(signal.SIG_IGN):
        yield


@contextmanager
def _handled(handler: Callable[[int, Any], Any] | signal.Handlers) -> Iterator[None]:
    before = [signal.signal(number, handler) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, earlier in zip(_SIGNALS, before, strict=True):
            signal.signal(number, earlier)
