"""Control connections: one for each pair of ranks, beside its streams.

A rank sends at most one last message, an abort (why, and who is at fault) or a goodbye. A connection that ends without
one belongs to a process that died, unless the kernel reports that its host does not answer. Before its last message a
rank may send words, small messages whose meaning is the business of `on_word`.

Several threads read: those of collectives and of messages, which a last message ends, and that of the group's watch,
which answers words while neither runs and leaves a last message for them. Nobody uses a socket's timeout, which would
be the others', too.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

TEXT_LIMIT = 2000  # bytes, as all limits here
_FRAME_LIMIT = 16 * 1024
_MAX_CHARACTER = 6  # of a message: JSON's escapes, as \u001b
_PATIENCE_S = 0.5
logger = logging.getLogger(__name__)
_NO_ANSWER = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


@dataclass(frozen=True)
class Abort:
    """Why a peer gave up: the name of its error's type, its text, the rank at fault as far as it knew, and whether its
    process ends."""

    kind: str
    culprit: int | None
    text: str
    ends: bool = False


@dataclass(frozen=True)
class Ending:
    """How a peer left.

    Attributes:
        text: what to say of it after its name.
        is_error: it did not say goodbye.
        is_abort: it said why it gave up this group; its process may go on, and have a part in others.
        unreachable: the kernel's error for a host that does not answer; it reports it once.
    """

    text: str
    is_error: bool = True
    is_abort: bool = False
    unreachable: str | None = None


LEFT = Ending("has left the group", is_error=False)
DIED = Ending("died: its connections closed without a message")


def ending(connection: socket.socket) -> Ending | None:
    """How the peer of a control connection left, or None if it has not; whatever it sent remains to be read."""
    poll = select.poll()
    try:
        poll.register(connection, select.POLLIN | select.POLLRDHUP)
        ready = poll.poll(0)
        if not ready:
            return None
        said = connection.recv(_FRAME_LIMIT, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        found = _ending_in(said)
        # After the end of a connection nothing more can come, so what stands in it before that is all there is.
        is_over = ready[0][1] & (select.POLLRDHUP | select.POLLHUP) and len(said) < _FRAME_LIMIT
        return DIED if not said or (found is None and is_over) else found
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno == errno.EBADF:  # another thread has closed this end meanwhile
            return None
        return _unreachable(os.strerror(error.errno)) if error.errno in _NO_ANSWER else DIED
    except ValueError:  # this end is closed
        return None


def _ending_in(said: bytes) -> Ending | None:
    """The last message among the frames that a peer sent; others may come before it, and it may be here in part."""
    while len(said) >= 4:
        length = int.from_bytes(said[:4], "little")
        frame, said = said[4 : 4 + length], said[4 + length :]
        try:
            message = json.loads(frame)
            if message.get("goodbye"):
                return LEFT
            if "kind" in message:
                return _gave_up(message["text"], bool(message.get("ends")))
        except (ValueError, RecursionError, AttributeError, TypeError, KeyError):
            return None
    return None


def _gave_up(text: object, ends: bool) -> Ending:
    return Ending(f"gave up: {text}", is_abort=not ends)


def _unreachable(reason: str) -> Ending:
    return Ending(f"does not answer any more ({reason}): its host or the link to it is down", unreachable=reason)


class ControlChannel:
    """Control connections by rank, and what has been received on them. Two threads read them: collectives and messages.

    Attributes:
        aborted: by rank, the abort it sent.
        left: ranks that said goodbye.
        died: ranks whose connection ended without a message.
        unreachable: by rank, the kernel's error for a host that does not answer.
        on_word: called with each word and its sender, on the thread that read it.
    """

    def __init__(self, control: dict[int, socket.socket]) -> None:
        self._control = control
        self._sent = False
        self._full: set[int] = set()  # ranks whose connections took no more, perhaps in the middle of a frame
        self._reading, self._sending = threading.RLock(), threading.Lock()
        self.aborted: dict[int, Abort] = {}
        self.left: set[int] = set()
        self.died: set[int] = set()
        self.unreachable: dict[int, str] = {}
        self.on_word: Callable[[int, Mapping[str, Any]], None] = lambda rank, word: None

    def send_goodbye(self) -> None:
        self._send_last({"goodbye": True})

    def send_abort(self, kind: str, culprit: int | None, text: str, ends: bool = False) -> None:
        """
        Args:
            ends: the process is about to end, so that nothing more is to be expected of it in any group.
        """
        self._send_last({"kind": kind, "culprit": culprit, "text": cut(text, TEXT_LIMIT), "ends": ends})

    def send_word(self, rank: int, word: Mapping[str, object]) -> bool:
        """Send a rank a message that is not the last; without its stack if it is too long with it.

        Returns:
            False if this rank or that one has sent its last, or the connection takes nothing, or it is too long.
        """
        connection, payload = self._control.get(rank), _encoded(word)
        if len(payload) > _FRAME_LIMIT:
            payload = _encoded({**word, "stack": ""})
        if len(payload) > _FRAME_LIMIT:
            logger.debug("a word of %d bytes was not sent", len(payload))
            return False
        with self._sending:
            if connection is None or self._sent or rank in self._full or self.has_ended(rank):
                return False
            try:
                _send_frame(connection, payload)
            except OSError:
                self._full.add(rank)
                return False
        return True

    def read(self, rank: int) -> None:
        """Receive a message of a rank whose control connection is readable."""
        with self._reading:
            if self.has_ended(rank):
                return
            try:
                message = _receive_frame(self._control[rank])
                if message is not None and "word" not in message:
                    self._note_last(rank, message)
            except (OSError, EOFError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError,
                    RecursionError) as error:  # fmt: skip
                self._note_end(rank, error)
                return
        if message is not None and "word" in message:
            self.on_word(rank, message)

    def read_word(self, rank: int) -> bool:
        """As `read`, but a last message, or an end, stays where it is, for the op that needs it.

        Returns:
            Whether there may be more words.
        """
        with self._reading:
            connection = self._control.get(rank)
            if connection is None or self.has_ended(rank):
                return False
            try:
                message = _peek_frame(connection)
                if message is not None:
                    if "word" not in message:
                        return False
                    _receive_frame(connection)
            except (EOFError, ValueError, TypeError, RecursionError):
                return False
            except OSError as error:  # the kernel reports it once
                self._note_end(rank, error)
                return False
        if message is not None:
            self.on_word(rank, message)
        return True

    def drain(self, rank: int) -> None:
        """Wait a moment for the message of a rank whose streams have ended, and take those of others that are here.

        A rank that breaks shuts its streams right after its abort, and that of the rank which failed first may arrive
        after those of ranks that failed because of it.
        """
        with self._reading:
            self._drain(rank, time.monotonic() + _PATIENCE_S)

    def _drain(self, rank: int, deadline: float) -> None:
        while (left_s := deadline - time.monotonic()) > 0:
            silent = {
                connection.fileno(): other for other, connection in self._control.items() if not self.has_ended(other)
            }
            poll = select.poll()
            for fd in silent:
                poll.register(fd, select.POLLIN)
            readable = poll.poll(left_s * 1000 if rank in silent.values() else 0)
            for fd, _ in readable:
                self.read(silent[fd])
            if not readable:
                return

    def ending(self, rank: int) -> Ending | None:
        """How a rank left, or None if it has not. Reads nothing, so any thread may ask."""
        if rank in self.aborted:
            return _gave_up(self.aborted[rank].text, self.aborted[rank].ends)
        if rank in self.unreachable:
            return _unreachable(self.unreachable[rank])
        if rank in self.died:
            return DIED
        if rank in self.left:
            return LEFT
        found = ending(self._control[rank]) if rank in self._control else None
        if found is not None and found.unreachable is not None:
            self.unreachable[rank] = found.unreachable
        return found

    def departure(self, rank: int) -> Ending | None:
        """As `ending`, but None also for a rank that has given up this group and is still there: it keeps its control
        connections open until it closes the group, or its process ends."""
        found = self.ending(rank)
        return found if found is None or not found.is_abort or _is_closed(self._control[rank]) else None

    def has_ended(self, rank: int) -> bool:
        """Whether a rank's last message or end has been read."""
        return rank in self.aborted or rank in self.left or rank in self.died or rank in self.unreachable

    def ranks_by_fd(self) -> dict[int, int]:
        return {connection.fileno(): rank for rank, connection in self._control.items()}

    def _note_last(self, rank: int, message: Mapping[str, Any]) -> None:
        if message.get("goodbye"):
            self.left.add(rank)
        else:
            culprit = message["culprit"]
            culprit = None if culprit is None else int(culprit)
            ends = bool(message.get("ends"))
            self.aborted[rank] = Abort(str(message["kind"]), culprit, str(message["text"]), ends)

    def _note_end(self, rank: int, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno in _NO_ANSWER:
            self.unreachable[rank] = os.strerror(error.errno)
        else:
            self.died.add(rank)

    def _send_last(self, message: dict[str, object]) -> None:
        """Only the first is sent: what happens after an abort follows from it."""
        with self._sending:
            if self._sent:
                return
            self._sent = True
            payload = _encoded(message)
            for rank, connection in self._control.items():
                if rank not in self._full:
                    with contextlib.suppress(OSError):  # a peer that is gone needs no message
                        _send_frame(connection, payload)


def _is_closed(connection: socket.socket) -> bool:
    """Whether the peer has closed a connection, on which something may still be unread."""
    poll = select.poll()
    try:
        poll.register(connection, select.POLLRDHUP)
    except ValueError:  # this end is closed
        return False
    return any(events & (select.POLLRDHUP | select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))


def cut(text: str, limit: int, keep_end: bool = False) -> str:
    """As much of the beginning of a text, or of its end, as takes at most `limit` bytes in a message."""
    kept = text[-limit:] if keep_end else text[:limit]
    while (excess := len(_encoded(kept)) - 2 - limit) > 0:  # two quotes
        fewer = len(kept) - -(-excess // _MAX_CHARACTER)
        kept = kept[len(kept) - fewer :] if keep_end else kept[:fewer]
    return kept


def _encoded(message: object) -> bytes:
    """Lone surrogates, as in names of files that are no UTF-8, become JSON's escapes for them."""
    return json.dumps(message, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _send_frame(connection: socket.socket, payload: bytes) -> None:
    """Four bytes of length, then the payload.

    Raises:
        OSError: the peer is gone, or takes nothing for _PATIENCE_S.
    """
    left = memoryview(struct.pack("<I", len(payload)) + payload)
    deadline = time.monotonic() + _PATIENCE_S
    while left:
        try:
            left = left[connection.send(left, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            _wait(connection, select.POLLOUT, deadline)


def _receive_frame(connection: socket.socket) -> Any:
    """The message in the next frame; None if nothing is here.

    Raises:
        EOFError: the peer has closed, which may be in the middle of a frame.
        OSError: another error of the connection, or half a frame for _PATIENCE_S.
        ValueError: not JSON, or too long.
    """
    deadline = time.monotonic() + _PATIENCE_S
    try:
        data = _receive(connection, 4)
    except BlockingIOError:
        return None
    while len(data) < (length := _frame_length(data)):
        try:
            data += _receive(connection, length - len(data))
        except BlockingIOError:
            _wait(connection, select.POLLIN, deadline)
    return json.loads(data[4:])


def _peek_frame(connection: socket.socket) -> Any:
    """As `_receive_frame`, but it stays where it is."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            data = _receive(connection, 4 + _FRAME_LIMIT, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        if len(data) >= _frame_length(data):
            return json.loads(data[4 : _frame_length(data)])
        if time.monotonic() > deadline:
            raise EOFError("half a frame, and nothing follows")
        time.sleep(0.005)


def _receive(connection: socket.socket, num_bytes: int, flags: int = 0) -> bytes:
    data = connection.recv(num_bytes, socket.MSG_DONTWAIT | flags)
    if not data:
        raise EOFError("the peer has closed the connection")
    return data


def _frame_length(data: bytes) -> int:
    """Of the whole frame that begins so, as far as it is known."""
    if len(data) < 4:
        return 4
    (length,) = struct.unpack_from("<I", data)
    if length > _FRAME_LIMIT:
        raise ValueError(f"a frame of {length} bytes where at most {_FRAME_LIMIT} are allowed")
    return 4 + int(length)


def _wait(connection: socket.socket, events: int, deadline: float) -> None:
    """
    Raises:
        OSError: the deadline has passed.
    """
    poll = select.poll()
    poll.register(connection, events)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError("the peer is slow")


def shut(connection: socket.socket) -> None:
    """End a connection for both sides, but keep its file descriptor: the loop may still poll it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
