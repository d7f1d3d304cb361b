"""N engines as threads of one process: real sockets, real compiled loop, seconds instead of minutes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from collectives.engine.runner import Engine, connect
from collectives.options import Options
from collectives.transport.rendezvous import Connections, Store, meet

T = TypeVar("T")
AT_ONCE_S = 100.0  # bounds what must not wait for a timeout: any machine is faster, and a group's timeout is longer


class MemoryStore:
    """A rendezvous store for threads."""

    def __init__(self, timeout_s: float = 300.0) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._timeout_s = timeout_s

    def set(self, key: str, value: str) -> None:
        with self._changed:
            self._values[key] = value.encode()
            self._changed.notify_all()

    def check(self, keys: list[str]) -> bool:
        with self._changed:
            return all(key in self._values for key in keys)

    def get(self, key: str) -> bytes:
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, self._timeout_s):
                raise RuntimeError(f"wait timeout for {key}")
            return self._values[key]


def on_all(size: int, do: Callable[[int], T]) -> list[T]:
    """`do(rank)` on a thread each; results by rank, or the first error."""
    with ThreadPoolExecutor(size) as pool:
        return [future.result() for future in [pool.submit(do, rank) for rank in range(size)]]


def errors_of(size: int, do: Callable[[int], object]) -> list[BaseException | None]:
    """`do(rank)` on a thread each; what each raised."""
    with ThreadPoolExecutor(size) as pool:
        return [future.exception() for future in [pool.submit(do, rank) for rank in range(size)]]


def connect_all(
    store: Store, rank: int, size: int, host: str, streams: int = 1, timeout_s: float = 100.0, **options: object
) -> Connections:
    """One rank's connections in a group that nothing runs on."""
    chosen = Options(host=host, **options)  # type: ignore[arg-type]
    with meet(store, rank, size, "test", 0, chosen, timeout_s) as meeting:
        meeting.connect()
        meeting.open_streams(streams)
        return meeting.connections


@contextmanager
def engines(hosts: Sequence[str], timeout_s: float = 300.0, **options: object) -> Iterator[list[Engine]]:
    """A group with one engine for each named host, closed in the end."""
    store = MemoryStore()

    def join(rank: int) -> Engine:
        chosen = Options(host=hosts[rank], **options)  # type: ignore[arg-type]
        return connect(store, rank, len(hosts), "test", timeout_s, chosen)

    group = on_all(len(hosts), join)
    try:
        yield group
    finally:
        on_all(len(hosts), lambda rank: group[rank].close())
