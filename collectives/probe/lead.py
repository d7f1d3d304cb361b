"""One host's part in all measurements: carries out rank 0's orders together with the leads of the other hosts.

An order is finished with every partner, even if one has failed. So a failed host does not block healthy ones, and the
bytes on a connection are always those that the other end expects. Errors are part of the answer to rank 0.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import numpy as np

from collectives.probe.rounds import Flow

PINGS = 12  # the fastest one counts; the others met a busy scheduler or network
BLOCK_BYTES = 64 * 1024
UNSENT_BYTES = 128 * 1024  # in a sender's socket; a full socket would keep a slow link busy long after the flow
SKIPPED, COUNTED = 0.4, 0.2  # fractions of a flow's time: not counted at its start, and needed for a valid count
CLOSED = "the connection was closed"
MEMORY_BYTES = 16 * 1024 * 1024
NOTSENT_LOWAT = 25  # TCP_NOTSENT_LOWAT of linux/tcp.h


def set_deadline(connection: socket.socket, deadline: float) -> None:
    """Let the connection's next call block until `deadline` (time.monotonic, seconds).

    At least 10 ms, so that data that has arrived can be read even after the deadline.
    """
    connection.settimeout(max(0.01, deadline - time.monotonic()))


def reason(error: OSError) -> str:
    """The error without its number."""
    return error.strerror or str(error)


class Lead:
    """The lowest rank of a host.

    Args:
        index: the host's position in the order of lowest ranks.
        names: of each host's lead, for errors.
        to: the connection to each other host's lead, by the host's position.
        deadline: when to give up on partners; time.monotonic, seconds.
        beside: further connections to them over other interfaces; a flow uses all of them at once.
    """

    def __init__(
        self,
        index: int,
        names: Sequence[str],
        to: Mapping[int, socket.socket],
        deadline: float,
        beside: Mapping[int, Sequence[socket.socket]] = MappingProxyType({}),
    ) -> None:
        self.index, self.names, self.to, self.deadline = index, names, to, deadline
        self._ways = {other: [connection, *beside.get(other, ())] for other, connection in to.items()}
        self._problems: list[str] = []

    def carry_out(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one order.

        Args:
            order: {"do": "ping", "rounds": [[(i, j), ...], ...]}, {"do": "memory"} or
                {"do": "flows", "flows": [(from, to), ...], "seconds": s}.

        Returns:
            The answer for rank 0: {"got": values by "from to" or by host, "problems": sentences}.
        """
        self._problems = []
        if order["do"] == "ping":
            got = self._pings(order["rounds"])
        elif order["do"] == "memory":
            got = {str(self.index): memory_bytes_per_s()}
        else:
            got = self._flows(order["flows"], order["seconds"])
        return {"got": got, "problems": self._problems}

    def _pings(self, rounds: Sequence[Sequence[Flow]]) -> dict[str, float]:
        """Seconds of half a round trip to each partner with a higher position; the other end answers."""
        seconds = {}
        for pairs in rounds:
            for first, second in pairs:
                if self.index == first:
                    with self._collecting_errors(second):
                        seconds[f"{first} {second}"] = self._ping(second)
                elif self.index == second:
                    with self._collecting_errors(first):
                        self._pong(first)
        return seconds

    def _ping(self, other: int) -> float:
        best = float("inf")
        for _ in range(PINGS):
            self._set_deadline(self.to[other])
            started = time.perf_counter()
            self.to[other].sendall(b".")
            _receive_byte(self.to[other])
            best = min(best, time.perf_counter() - started)
        return best / 2

    def _pong(self, other: int) -> None:
        for _ in range(PINGS):
            self._set_deadline(self.to[other])
            self.to[other].sendall(_receive_byte(self.to[other]))

    def _flows(self, flows: Sequence[Flow], seconds: float) -> dict[str, float]:
        """Run this host's flows, all at once; returns the rates at which flows arrived here, in bytes per second."""
        out = [target for source, target in flows if source == self.index]
        into = [source for source, target in flows if target == self.index]
        if not out and not into:
            return {}
        got = {}
        with ThreadPoolExecutor(sum(len(self._ways[other]) for other in (*out, *into))) as pool:
            sending = {to: [pool.submit(self._send, way, seconds) for way in self._ways[to]] for to in out}
            receiving = {of: [pool.submit(self._receive, way, seconds) for way in self._ways[of]] for of in into}
            for target, sent in sending.items():
                for each in sent:
                    with self._collecting_errors(target):
                        each.result()
            for source, received in receiving.items():
                with self._collecting_errors(source):
                    got[f"{source} {self.index}"] = sum(each.result() for each in received)
        return got

    def _send(self, connection: socket.socket, seconds: float) -> None:
        """Send blocks for `seconds`; the first byte of a block says whether it is the last."""
        until = time.perf_counter() + seconds
        connection.setsockopt(socket.IPPROTO_TCP, NOTSENT_LOWAT, UNSENT_BYTES)
        more, last = bytes(BLOCK_BYTES), b"\1" + bytes(BLOCK_BYTES - 1)
        is_last = False
        while not is_last:
            is_last = time.perf_counter() >= until
            self._set_deadline(connection)
            connection.sendall(last if is_last else more)

    def _receive(self, connection: socket.socket, seconds: float) -> float:
        """Receive a flow; returns bytes per second of its second part, or of the whole if that part is too short.

        The first part does not count: TCP's slow start, and the burst that a traffic shaper lets through after a pause,
        show rates that a long message does not get.
        """
        block = memoryview(bytearray(BLOCK_BYTES))
        total, begin_bytes, now = 0, 0, 0.0
        first: float | None = None
        begin: float | None = None
        while total == 0 or total % BLOCK_BYTES or block[0] == 0:
            self._set_deadline(connection)
            n = connection.recv_into(block[total % BLOCK_BYTES :])  # not beyond the block: an answer may follow it
            if not n:
                raise OSError(CLOSED)
            now = time.perf_counter()
            total += n
            first = first or now
            if begin is None and now - first >= SKIPPED * seconds:
                begin, begin_bytes = now, total
        assert first is not None
        if begin is not None and now - begin >= COUNTED * seconds:
            return (total - begin_bytes) / (now - begin)
        # Most of the data had arrived before this thread came to read, so its reading speed is not the link's.
        return total / max(now - first, seconds)

    def _set_deadline(self, connection: socket.socket) -> None:
        """Let the next call block until the deadline, and after that raise instead of sending or reading.

        The other end may have given up, too, and what it sends then is its answer to rank 0, not part of the flow.
        """
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        connection.settimeout(left_s)

    @contextlib.contextmanager
    def _collecting_errors(self, other: int) -> Iterator[None]:
        """Turn a socket error into a sentence of the answer."""
        try:
            yield
        except OSError as error:
            self._problems.append(f"{self.names[self.index]} lost {self.names[other]}: {reason(error)}")


def memory_bytes_per_s() -> float:
    """Rate of copying in memory, in bytes per second: one thread, more than fits into a cache, the best of several."""
    source, target = np.ones(MEMORY_BYTES, np.uint8), np.ones(MEMORY_BYTES, np.uint8)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - started)
    return float(f"{MEMORY_BYTES / best:.3g}")


def _receive_byte(connection: socket.socket) -> bytes:
    data = connection.recv(1)
    if not data:
        raise OSError(CLOSED)
    return data
