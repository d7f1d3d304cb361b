"""One host's end of all measurements: carries out rank 0's orders together with the leads of the other hosts.

An order is finished with every partner, whatever happened with the others. So one that fails holds up nobody who is
well, and what is on a connection is always what the other end expects. What went wrong stands in the answer.
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

PINGS = 12
BLOCK_BYTES = 64 * 1024
UNSENT_BYTES = 128 * 1024
SKIPPED, COUNTED = 0.4, 0.2  # of a flow: what is passed over before counting starts, and what must be left to count
CLOSED = "the connection was closed"
MEMORY_BYTES = 16 * 1024 * 1024
NOTSENT_LOWAT = 25  # TCP_NOTSENT_LOWAT of linux/tcp.h


def patient_until(connection: socket.socket, deadline: float) -> None:
    """The connection's next call may take until then (time.monotonic, seconds); what is there by then can be read."""
    connection.settimeout(max(0.01, deadline - time.monotonic()))


def reason(error: OSError) -> str:
    return error.strerror or str(error)


class Lead:
    """The lowest rank of a host.

    Args:
        index: the host's position in the order of lowest ranks.
        names: what to call each host in errors.
        to: the connection to each other host's lead, by the host's position.
        deadline: when to give up on partners; time.monotonic, seconds.
        beside: further connections to them, over other interfaces; a flow takes all there are at once.
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
        """Do an order's work; the answer for rank 0: {"got": values by "from to" or by host, "problems": sentences}."""
        self._problems = []
        if order["do"] == "ping":
            got = self._pings(order["rounds"])
        elif order["do"] == "memory":
            got = {str(self.index): memory_bytes_per_s()}
        else:
            got = self._flows(order["flows"], order["seconds"])
        return {"got": got, "problems": self._problems}

    def _pings(self, rounds: Sequence[Sequence[Flow]]) -> dict[str, float]:
        """Half a round trip to each partner that comes after us."""
        seconds = {}
        for pairs in rounds:
            for first, second in pairs:
                if self.index == first:
                    with self._noting(second):
                        seconds[f"{first} {second}"] = self._ping(second)
                elif self.index == second:
                    with self._noting(first):
                        self._pong(first)
        return seconds

    def _ping(self, other: int) -> float:
        best = float("inf")
        for _ in range(PINGS):
            self._be_patient(self.to[other])
            started = time.perf_counter()
            self.to[other].sendall(b".")
            _receive_byte(self.to[other])
            best = min(best, time.perf_counter() - started)
        return best / 2

    def _pong(self, other: int) -> None:
        for _ in range(PINGS):
            self._be_patient(self.to[other])
            self.to[other].sendall(_receive_byte(self.to[other]))

    def _flows(self, flows: Sequence[Flow], seconds: float) -> dict[str, float]:
        """Send and receive our flows, all at once; the rates that arrived here."""
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
                    with self._noting(target):
                        each.result()
            for source, received in receiving.items():
                with self._noting(source):
                    got[f"{source} {self.index}"] = sum(each.result() for each in received)
        return got

    def _send(self, connection: socket.socket, seconds: float) -> None:
        """Blocks until the time is over; the first byte of a block says whether it is the last."""
        until = time.perf_counter() + seconds
        connection.setsockopt(socket.IPPROTO_TCP, NOTSENT_LOWAT, UNSENT_BYTES)
        more, last = bytes(BLOCK_BYTES), b"\1" + bytes(BLOCK_BYTES - 1)
        is_last = False
        while not is_last:
            is_last = time.perf_counter() >= until
            self._be_patient(connection)
            connection.sendall(last if is_last else more)

    def _receive(self, connection: socket.socket, seconds: float) -> float:
        """Bytes per second of the part that counts; of the whole flow if hardly any of it is left to count."""
        block = memoryview(bytearray(BLOCK_BYTES))
        total, begin_bytes, now = 0, 0, 0.0
        first: float | None = None
        begin: float | None = None
        while total == 0 or total % BLOCK_BYTES or block[0] == 0:
            self._be_patient(connection)
            n = connection.recv_into(block[total % BLOCK_BYTES :])  # no further: an answer may follow
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
        # Most of it was here before this end came to read, so how fast it was read says nothing.
        return total / max(now - first, seconds)

    def _be_patient(self, connection: socket.socket) -> None:
        """The next call may take until the deadline. After it nothing more is sent or read: the other end may have
        given up, too, and then what comes from it is its answer to rank 0."""
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        connection.settimeout(left_s)

    @contextlib.contextmanager
    def _noting(self, other: int) -> Iterator[None]:
        """Socket errors as a sentence in the answer."""
        try:
            yield
        except OSError as error:
            self._problems.append(f"{self.names[self.index]} lost {self.names[other]}: {reason(error)}")


def memory_bytes_per_s() -> float:
    """What copying gives here: bytes per second of one thread, beyond the cache; the best of several."""
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
