"""SIGINT, SIGTERM and SIGHUP: how they end a command of the lab, and when they have to wait."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ending() -> Iterator[None]:
    """Have them leave the block as SystemExit, with the status that shells give them."""
    with _handled(lambda number, _: sys.exit(128 + number)):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore them while things are taken back, which takes some seconds at most."""
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
