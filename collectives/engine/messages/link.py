"""One message connection: frames out, bytes in. It moves what the socket takes or has, and never blocks.

What a header means, and where its payload belongs, its owner says: `on_header` returns the sink of the payload, an
object that counts what it took, and the memory; `on_payload` is called when the payload is complete. Long payloads are
read straight into that memory. Headers and short payloads are read together, many at a time, into a buffer of the
link's.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import select
import socket
import struct
import termios
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from collectives.engine.messages.frames import (
    ANNOUNCE,
    CHUNK_BYTES,
    DATA,
    EAGER,
    EAGER_BYTES,
    HEADER_BYTES,
    WINDOW_BYTES,
    Header,
    cost,
    pack,
    unpack,
)
from collectives.engine.messages.matching import Arrival, Request

STAGING_BYTES = 64 * 1024
WAKE_BYTES = 64 * 1024
AT_ONCE = 8  # reads or writes before others get their turn


class Payload(NamedTuple):
    """Where the bytes after a header belong."""

    header: Header
    sink: Request | Arrival
    memory: memoryview


OnHeader: TypeAlias = Callable[["Link", Header], Payload | None]
OnPayload: TypeAlias = Callable[["Link", Payload], object]


class _Outgoing:
    """A frame that is being sent, and the request that has ended when it is out (None: it goes on)."""

    __slots__ = ("ends", "header", "payload", "request", "sent")

    def __init__(self, header: bytes, payload: memoryview, request: Request | None, ends: bool) -> None:
        self.header, self.payload, self.request, self.ends, self.sent = header, payload, request, ends, 0


class Link:
    """The connection to one peer and what is under way on it.

    Attributes:
        rank: the peer.
        requests: those that have not ended and need this peer.
        announced: by number, sends that wait for the peer's READY.
        incoming: by number, receives whose announced messages arrive.
        credit: bytes of eager messages that may still be sent.
        kept, due: cost of eager messages that came and were not given back yet; the part that can be.
        unclaimed: announcements that wait for a receive.
        ended: the peer's stream has ended; nothing more comes or goes.
        mask: what poll was asked to report.
    """

    def __init__(self, rank: int, connection: socket.socket, generation: int) -> None:
        connection.setblocking(False)
        self.rank, self.connection, self.fd = rank, connection, connection.fileno()
        self.requests: set[Request] = set()
        self.announced: dict[int, Request] = {}
        self.incoming: dict[int, Request] = {}
        self.credit, self.kept, self.due, self.unclaimed = WINDOW_BYTES, 0, 0, 0
        self.ended = self.used = False
        self.mask = 0
        self._generation, self._messages = generation, 0
        self._frames: collections.deque[_Outgoing] = collections.deque()
        self._transfers: collections.deque[tuple[int, Request, int]] = collections.deque()
        self._sending: _Outgoing | None = None
        self._counted = 0  # bytes of its payload that its request knows of
        self._staging = bytearray()  # made at the first receive: most pairs of a large group exchange no message
        self._staging_view = memoryview(self._staging)
        self._start = self._end = 0  # bytes in staging that have not been looked at
        self._payload: Payload | None = None
        self._at = 0  # bytes of the payload that are here
        self._wakes_at = 1

    # Out

    @property
    def wants_to_write(self) -> bool:
        return self._sending is not None or bool(self._frames) or bool(self._transfers)

    def send_message(self, request: Request) -> None:
        """Queue a message: at once, or its announcement."""
        length = len(request.view)
        if length <= EAGER_BYTES and cost(length) <= self.credit:
            self.credit -= cost(length)
            self._frames.append(_Outgoing(self._header(EAGER, request), request.view, request, True))
        else:
            self._messages += 1
            self.announced[self._messages] = request
            header = self._header(ANNOUNCE, request, self._messages)
            self._frames.append(_Outgoing(header, memoryview(b""), None, False))

    def push_frame(self, kind: int, message: int = 0) -> None:
        """Queue a frame without a payload. It goes before all messages that wait: the peer waits for it."""
        header = pack(Header(kind, 0, self._generation, self._credit(), 0, 0, message))
        self._frames.appendleft(_Outgoing(header, memoryview(b""), None, False))

    def transfer(self, message: int) -> bool:
        """The peer is ready for an announced message; False if there is none of this number."""
        request = self.announced.pop(message, None)
        if request is not None:
            self._transfers.append((message, request, 0))
        return request is not None

    def flush(self) -> list[Request]:
        """Write as much as the socket takes; the sends that have ended.

        Raises:
            OSError: the connection has ended.
        """
        ended: list[Request] = []
        for _ in range(AT_ONCE):
            if self._sending is None:
                self._sending = self._next()
            frame = self._sending
            if frame is None:
                break
            self.used = True
            try:
                frame.sent += self.connection.sendmsg(_rest(frame), (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            if frame.request is not None:
                frame.request.moved += max(0, frame.sent - HEADER_BYTES) - self._counted
                self._counted = max(0, frame.sent - HEADER_BYTES)
            if frame.sent == HEADER_BYTES + len(frame.payload):
                self._sending, self._counted = None, 0
                if frame.request is not None and frame.ends:
                    ended.append(frame.request)
        return ended

    def _next(self) -> _Outgoing | None:
        """Frames first: a short message does not wait for all of a long one."""
        if self._frames:
            return self._frames.popleft()
        if not self._transfers:
            return None
        message, request, at = self._transfers.popleft()
        chunk = request.view[at : at + CHUNK_BYTES]
        at += len(chunk)
        if at < len(request.view):
            self._transfers.append((message, request, at))
        header = Header(DATA, 0, self._generation, self._credit(), 0, len(chunk), message)
        return _Outgoing(pack(header), chunk, request, at == len(request.view))

    def _header(self, kind: int, request: Request, message: int = 0) -> bytes:
        length = len(request.view)
        return pack(Header(kind, request.dtype, self._generation, self._credit(), request.tag, length, message))

    def _credit(self) -> int:
        """All that can be given back; it rides in the next header."""
        given = self.due
        self.due -= given
        self.kept -= given
        return given

    def unacknowledged(self) -> int:
        """Bytes written that the peer's kernel does not have yet."""
        with contextlib.suppress(OSError):
            (count,) = struct.unpack("=i", fcntl.ioctl(self.fd, termios.TIOCOUTQ, b"\0\0\0\0"))
            return int(count)
        return 0

    def is_over(self) -> bool:
        """Whether the peer has closed the connection, so that nothing more arrives there."""
        poll = select.poll()
        poll.register(self.connection, select.POLLRDHUP)
        return self.ended or bool(poll.poll(0))

    # In

    def receive(self, on_header: OnHeader, on_payload: OnPayload) -> bool:
        """Read what is here, up to a few buffers full; whether there may be more.

        Raises:
            OSError: the connection has ended.
        """
        if not self._staging:
            self._staging = bytearray(STAGING_BYTES)
            self._staging_view = memoryview(self._staging)
        for _ in range(AT_ONCE):
            straight = self._payload is not None and self._start == self._end and self._left >= STAGING_BYTES
            if straight:
                assert self._payload is not None
                room = self._payload.memory[self._at : self._at + CHUNK_BYTES]
            else:
                room = self._staging_view[self._end :]
            try:
                got = self.connection.recv_into(room)
            except BlockingIOError:
                return False
            if not got:
                raise OSError("closed")
            if straight:
                self._arrived(got, on_payload)
            else:
                self._end += got
                self._parse(on_header, on_payload)
            self._wake_at()
            if got < len(room):
                return False
        return True

    def drop_unread(self) -> None:
        """Read what is here, for nobody."""
        with contextlib.suppress(OSError):
            while self.connection.recv(STAGING_BYTES):
                pass

    @property
    def _left(self) -> int:
        return 0 if self._payload is None else len(self._payload.memory) - self._at

    def _parse(self, on_header: OnHeader, on_payload: OnPayload) -> None:
        while True:
            if self._payload is not None:
                length = min(self._left, self._end - self._start)
                if length == 0 and self._left:
                    break
                at, start = self._at, self._start
                self._payload.memory[at : at + length] = self._staging_view[start : start + length]
                self._start += length
                self._arrived(length, on_payload)
                continue
            if self._end - self._start < HEADER_BYTES:
                break
            header = unpack(self._staging, self._start)
            self._start += HEADER_BYTES
            self._payload = on_header(self, header)
        rest = self._end - self._start
        if rest and self._start:
            self._staging[:rest] = self._staging[self._start : self._end]
        self._start, self._end = 0, rest

    def _arrived(self, length: int, on_payload: OnPayload) -> None:
        payload = self._payload
        assert payload is not None
        self._at += length
        payload.sink.took(length)
        if self._at == len(payload.memory):
            self._payload, self._at = None, 0
            on_payload(self, payload)

    def _wake_at(self) -> None:
        """Have poll report a long payload when a good part of it is here: on slow links it comes packet by packet."""
        wanted = min(WAKE_BYTES, self._left) if self._left >= STAGING_BYTES else 1
        if wanted != self._wakes_at:
            self._wakes_at = wanted
            with contextlib.suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)


def _rest(frame: _Outgoing) -> list[Any]:
    """What is still to be sent of a frame."""
    if frame.sent < HEADER_BYTES:
        return [frame.header[frame.sent :], frame.payload] if frame.payload else [frame.header[frame.sent :]]
    return [frame.payload[frame.sent - HEADER_BYTES :]]
