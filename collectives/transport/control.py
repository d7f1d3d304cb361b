"""What a rank sends its peers when it leaves, on control connections: an abort (why, and who is at fault) or a goodbye.

Each rank sends at most one of them, as its last message. A connection that ends without one belongs to a process that
died, unless the kernel reports that its host does not answer.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import threading
import time
from dataclasses import dataclass

from collectives.transport.tcp import receive_frame, send_frame

TEXT_LIMIT = 2000
_FRAME_LIMIT = 16 * 1024
_PATIENCE_S = 0.5
_NO_ANSWER = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


@dataclass(frozen=True)
class Abort:
    """Why a peer gave up: the name of its error's type, its text, and the rank at fault as far as it knew."""

    kind: str
    culprit: int | None
    text: str


class ControlChannel:
    """Control connections by rank, and what has been received on them. Two threads read them: collectives and messages.

    Attributes:
        aborted: by rank, the abort it sent.
        left: ranks that said goodbye.
        died: ranks whose connection ended without a message.
        unreachable: by rank, the kernel's error for a host that does not answer.
    """

    def __init__(self, control: dict[int, socket.socket]) -> None:
        self._control = control
        self._sent = False
        self._reading, self._sending = threading.RLock(), threading.Lock()
        self.aborted: dict[int, Abort] = {}
        self.left: set[int] = set()
        self.died: set[int] = set()
        self.unreachable: dict[int, str] = {}

    def send_goodbye(self) -> None:
        self._send_last({"goodbye": True})

    def send_abort(self, kind: str, culprit: int | None, text: str) -> None:
        self._send_last({"kind": kind, "culprit": culprit, "text": text[:TEXT_LIMIT]})

    def read(self, rank: int) -> None:
        """Receive the message of a rank whose control connection is readable."""
        with self._reading:
            if not self._has_ended(rank):
                self._read(rank)

    def _read(self, rank: int) -> None:
        connection = self._control[rank]
        connection.settimeout(_PATIENCE_S)
        try:
            message = json.loads(receive_frame(connection, _FRAME_LIMIT))
            if message.get("goodbye"):
                self.left.add(rank)
            else:
                culprit = message["culprit"]
                culprit = None if culprit is None else int(culprit)
                self.aborted[rank] = Abort(str(message["kind"]), culprit, str(message["text"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, OSError) and error.errno in _NO_ANSWER:
                self.unreachable[rank] = os.strerror(error.errno)
            else:
                self.died.add(rank)
        finally:
            connection.settimeout(None)

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
                connection.fileno(): other for other, connection in self._control.items() if not self._has_ended(other)
            }
            poll = select.poll()
            for fd in silent:
                poll.register(fd, select.POLLIN)
            readable = poll.poll(left_s * 1000 if rank in silent.values() else 0)
            for fd, _ in readable:
                self.read(silent[fd])
            if not readable:
                return

    def _has_ended(self, rank: int) -> bool:
        return rank in self.aborted or rank in self.left or rank in self.died or rank in self.unreachable

    def _send_last(self, message: dict[str, object]) -> None:
        """Only the first is sent: what happens after an abort follows from it."""
        with self._sending:
            if self._sent:
                return
            self._sent = True
        payload = json.dumps(message).encode()
        for connection in self._control.values():
            with contextlib.suppress(OSError):  # a peer that is gone needs no message
                connection.settimeout(_PATIENCE_S)
                send_frame(connection, payload)


def shut(connection: socket.socket) -> None:
    """End a connection for both sides, but keep its file descriptor: the loop may still poll it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
