"""Which arrived message goes to which receive. No I/O: receives and arrivals in, pairs out.

A receive names a source, or takes any, and a tag. Messages from one source with one tag are received in the order in
which they were sent. A message goes to the receive that was posted first among those it fits; a receive from any source
takes the message that arrived first.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Request:
    """A message that this rank sends or receives.

    Attributes:
        peer: the other rank; None until a receive from any source has one.
        view: the message's memory, writable for a receive.
        dtype: its number in `frames.DTYPES`.
        keep: whatever owns that memory.
        moved: bytes that have been handed to the kernel, or that have arrived.
        done: it has ended; `error` says how, if it failed.
        listeners: called once when it has ended; they must not block.
        order: position among the posted receives.
    """

    is_send: bool
    peer: int | None
    tag: int
    view: memoryview
    dtype: int
    keep: object = None
    moved: int = 0
    done: bool = False
    error: BaseException | None = None
    listeners: list[Callable[[], object]] = field(default_factory=list)
    order: int = 0

    def took(self, num_bytes: int) -> None:
        """So many bytes more have arrived."""
        self.moved += num_bytes


@dataclass(eq=False, slots=True)
class Arrival:
    """A message of which at least the header is here.

    Attributes:
        message: the sender's number for an announced message, None for one that came at once.
        data: memory for a message that came before its receive; None if announced, or if a receive was there.
        moved: bytes of it that have arrived.
        receive: the receive that will have it, once that is known.
    """

    source: int
    tag: int
    length: int
    dtype: int
    message: int | None
    data: bytearray | None = None
    moved: int = 0
    receive: Request | None = None
    order: int = 0

    def took(self, num_bytes: int) -> None:
        """So many bytes more have arrived; whoever waits for them sees progress."""
        self.moved += num_bytes
        if self.receive is not None:
            self.receive.moved = self.moved


class Matcher:
    """Posted receives that wait for a message, and messages that wait for a receive."""

    def __init__(self) -> None:
        self._order = itertools.count()
        self._posted: dict[tuple[int | None, int], collections.deque[Request]] = {}
        self._arrived: dict[tuple[int, int], collections.deque[Arrival]] = {}
        self.from_any = 0
        """Receives from any source that wait."""

    def post(self, receive: Request) -> Arrival | None:
        """Add a receive; the message for it if that has arrived already."""
        if receive.peer is not None:
            key = (receive.peer, receive.tag)
        else:
            keys = [key for key in self._arrived if key[1] == receive.tag]
            key = min(keys, key=lambda each: self._arrived[each][0].order, default=(-1, receive.tag))
        arrival = _first(self._arrived, key)
        if arrival is None:
            receive.order = next(self._order)
            self._posted.setdefault((receive.peer, receive.tag), collections.deque()).append(receive)
            self.from_any += receive.peer is None
        return arrival

    def arrive(self, arrival: Arrival) -> Request | None:
        """Add a message; the receive for it if one waits."""
        exact, any_source = (arrival.source, arrival.tag), (None, arrival.tag)
        waiting = [key for key in (exact, any_source) if key in self._posted]
        if not waiting:
            arrival.order = next(self._order)
            self._arrived.setdefault(exact, collections.deque()).append(arrival)
            return None
        receive = _first(self._posted, min(waiting, key=lambda key: self._posted[key][0].order))
        assert receive is not None
        self.from_any -= receive.peer is None
        return receive

    def waiting_for_any(self) -> list[Request]:
        return [each for (source, _), queue in self._posted.items() if source is None for each in queue]

    def withdraw(self, receive: Request) -> bool:
        """Forget a receive that waits; whether it did."""
        key = (receive.peer, receive.tag)
        queue = self._posted.get(key)
        if queue is None or receive not in queue:
            return False
        queue.remove(receive)
        self.from_any -= receive.peer is None
        if not queue:
            del self._posted[key]
        return True


def _first(queues: dict[K, collections.deque[T]], key: K) -> T | None:
    """Take the first of a queue; queues do not stay when they are empty, since tags may be counted up for ever."""
    queue = queues.get(key)
    if queue is None:
        return None
    first = queue.popleft()
    if not queue:
        del queues[key]
    return first
