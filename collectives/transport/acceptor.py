"""Admits the connections of a forming group's ranks, on one thread, however many strangers connect at the same time.

Whoever connects has one deadline for its whole handshake, and no more than MAX_PENDING are in one at a time. When all
places are taken, the one who has been there longest goes, unless it has just come: a rank that is sent away so comes
again, since it tries until the group's deadline. Strangers are counted, and the first few kept for the error message.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from collectives.errors import RendezvousError
from collectives.transport.connecting import NO_DESCRIPTORS, Patience, descriptor_limit
from collectives.transport.handshake import FRAME_LIMIT, Admission, Hello, Refused, Secret

MAX_PENDING = 64
HANDSHAKE_S, MIN_STAY_S = 20.0, 0.25
RECOVERY_S, NO_DESCRIPTORS_S = 0.05, 3.0
MAX_STREAM = 1024
STRANGERS_SHOWN, TEXT_SHOWN = 3, 100
SLICE_S = 0.1
_PASSING = (errno.ECONNABORTED, errno.EAGAIN, errno.EINTR, errno.EPROTO)

Key = tuple[int, int]
"""The peer's rank and the stream's number."""


@dataclass
class Strangers:
    """Connections that were refused."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, address: str, reason: str) -> None:
        self.count += 1
        if len(self.first) < STRANGERS_SHOWN:
            self.first.append(f"{address}: {reason}"[:TEXT_SHOWN])

    def __str__(self) -> str:
        """For the end of an error message; "" if there were none."""
        if not self.count:
            return ""
        more = f"; and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
        return f"; refused {self.count} connections: {'; '.join(self.first)}{more}"


@dataclass
class _Pending:
    """A connection in its handshake."""

    connection: socket.socket
    address: str
    admission: Admission
    came_at: float
    has_spoken: bool = False


class Acceptor(threading.Thread):
    """Admits ranks above `rank`, each stream once, until it is closed.

    Args:
        servers: non-blocking listening sockets, which are closed with it.
    """

    def __init__(
        self, servers: Sequence[socket.socket], group: str, generation: int, rank: int, size: int, secret: Secret
    ) -> None:
        super().__init__(name="narrowgauge-accept", daemon=True)
        self.strangers = Strangers()
        self._servers, self._hello, self._size, self._secret = servers, (group, generation, rank), size, secret
        self._admitted: dict[Key, socket.socket] = {}
        self._taken: set[Key] = set()
        self._pending: dict[socket.socket, _Pending] = {}
        self._changed = threading.Condition()
        self._stopped = False
        self._error: BaseException | None = None
        self._no_descriptors: tuple[float, OSError] | None = None  # since when, and the kernel's error
        self._waker, self._wake = socket.socketpair()
        self._selector = selectors.DefaultSelector()

    def take(self, keys: set[Key], patience: Patience) -> dict[Key, socket.socket]:
        """These connections, once all of them are admitted.

        Raises:
            RendezvousError: this process has no descriptors for more.
            TimeoutError: some have not come; `missing` says which.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: keys <= self._admitted.keys() or self._error is not None, SLICE_S)
                if self._error is not None:
                    raise self._error
                if keys <= self._admitted.keys():
                    self._taken |= keys
                    return {key: self._admitted.pop(key) for key in keys}
                held_up = self._no_descriptors
            if held_up is not None and time.monotonic() > held_up[0] + NO_DESCRIPTORS_S:
                raise held_up[1]
            patience.check()
            if time.monotonic() > patience.deadline:
                raise TimeoutError

    def missing(self, keys: set[Key]) -> list[int]:
        """The ranks of those connections that are not here."""
        with self._changed:
            return sorted({rank for rank, _ in keys - self._admitted.keys()})

    def close(self) -> None:
        """Stop listening, end all handshakes, and close what was admitted and not taken."""
        self._stopped = True
        self._wake.send(b"x")
        if self.ident is not None:
            self.join()
        self._selector.close()
        with self._changed:
            pending = [each.connection for each in self._pending.values()]
            for each in [*self._servers, *pending, *self._admitted.values(), self._waker, self._wake]:
                each.close()
            self._admitted.clear()

    def run(self) -> None:
        try:
            self._selector.register(self._waker, selectors.EVENT_READ, lambda: None)
            for server in self._servers:
                self._selector.register(server, selectors.EVENT_READ, functools.partial(self._accept, server))
            while not self._stopped:
                self._turn()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _turn(self) -> None:
        for key, _ in self._selector.select(SLICE_S if self._pending else None):
            key.data()
        now = time.monotonic()
        for each in list(self._pending.values()):
            if now > each.came_at + HANDSHAKE_S:
                self._refuse(each, f"its handshake took more than {HANDSHAKE_S:g} s")

    def _accept(self, server: socket.socket) -> None:
        now = time.monotonic()
        if len(self._pending) >= MAX_PENDING:
            oldest = next(iter(self._pending.values()))
            if now < oldest.came_at + MIN_STAY_S:
                time.sleep(0.001)  # it waits in the kernel's queue meanwhile
                return
            self._refuse(oldest, "it said nothing while others waited")
        try:
            connection, (address, *_) = server.accept()
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                self._without_descriptors(error, now)
            elif error.errno not in _PASSING:
                raise
            return
        self._no_descriptors = None
        admission = Admission(*self._hello, self._secret)
        pending = _Pending(connection, address, admission, now)
        try:
            connection.setblocking(False)
            connection.send(admission.nonce)
            self._selector.register(connection, selectors.EVENT_READ, functools.partial(self._receive, pending))
        except OSError as error:
            self.strangers.add(address, f"it broke off the handshake ({error.strerror or error})")
            connection.close()
            return
        self._pending[connection] = pending

    def _without_descriptors(self, error: OSError, now: float) -> None:
        """Wait for some to come free: those of strangers, or of whatever else this process does."""
        self._no_descriptors = self._no_descriptors or (now, error)
        if self._pending:
            self._refuse(next(iter(self._pending.values())), "this process ran out of descriptors")
        time.sleep(RECOVERY_S)

    def _receive(self, pending: _Pending) -> None:
        if pending.connection not in self._pending:  # refused in this same turn, for want of a place
            return
        try:
            data = pending.connection.recv(FRAME_LIMIT + 5)
            if not data and not pending.has_spoken:  # a rank that looked whether this one is still there
                self._forget(pending)
                pending.connection.close()
                return
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "the peer closed")
            pending.has_spoken = True
            hello = pending.admission.receive(data)
            if hello is not None:
                self._admit(pending, hello)
        except BlockingIOError:
            return
        except Refused as refusal:
            with contextlib.suppress(OSError):
                pending.connection.send(refusal.answer)
            self._refuse(pending, str(refusal))
        except OSError as error:
            self._refuse(pending, f"it broke off the handshake ({error.strerror or error})")

    def _admit(self, pending: _Pending, hello: Hello) -> None:
        key, rank = (hello.rank, hello.stream), self._hello[2]
        with self._changed:
            if not rank < hello.rank < self._size or not 0 <= hello.stream <= MAX_STREAM or key in self._taken:
                raise pending.admission.refusal(f"rank {hello.rank} stream {hello.stream} is not expected")
            self._forget(pending)
            if _is_gone(pending.connection):  # it lost patience, and comes again
                pending.connection.close()
                return
            pending.connection.send(pending.admission.answer())
            # A rank that did not get the answer in time comes again: the later connection is the one that it uses.
            before = self._admitted.pop(key, None)
            self._admitted[key] = pending.connection
            self._changed.notify_all()
        if before is not None:
            before.close()

    def _refuse(self, pending: _Pending, reason: str) -> None:
        self._forget(pending)
        pending.connection.close()
        self.strangers.add(pending.address, reason)

    def _forget(self, pending: _Pending) -> None:
        if self._pending.pop(pending.connection, None) is not None:
            self._selector.unregister(pending.connection)


def _is_gone(connection: socket.socket) -> bool:
    """Whether the peer has closed a connection on which all that it sent has been read."""
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False


def no_descriptors(error: OSError, who: str) -> RendezvousError:
    """What a rank reports that ran out of file descriptors while its group formed."""
    return RendezvousError(f"{who}: {descriptor_limit(error)}")
