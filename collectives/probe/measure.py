"""Measures the links between hosts, on connections that are there already.

The lowest rank of each host leads it, and rank 0 conducts: it sends every lead an order, the leads carry it out side by
side, and each tells what it got.

    latency      matchings of ping-pongs, before there is any load
    matchings    n - 1 rounds of disjoint pairs, both directions at once, as in a tournament
    again        pairs that got less than their hosts can do, once more, in case something else was in the way
    fans         a host that no other single host could fill, with all others at once
    slow hosts   once more and for longer, since few slices pass in the time of a matching
    crossings    groups of hosts that are slow to reach from outside: one pair alone, then all at once

A flow lasts some tenths of a second. The receiver counts, and only the second part: slow start, and what a shaper lets
through at once after a pause, are over by then. A sender keeps little in its socket, so a slow link is not clogged for
longer than that.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from collectives.engine.tcp import receive_frame, send_frame
from collectives.errors import RendezvousError
from collectives.probe.infer import Crossing, Readings, capacities, groups, held_up, infer
from collectives.topology import Topology

PINGS = 12
BLOCK_BYTES = 64 * 1024
UNSENT_BYTES = 128 * 1024
FLOW_S, SHORTEST_FLOW_S, LONGEST_FLOW_S = 0.3, 0.1, 1.5
MATCHINGS_S = 2.2  # for all of them
ROUND_TRIPS = 15  # of slow start that a flow outlasts
SKIPPED = 0.4  # of a flow, before counting starts
MOST_FANS, NEAR_THE_FASTEST, FAN_S = 8, 0.9, 0.15
MOST_AGAIN = 2  # rounds
SLOW_BYTES_PER_S, SLOW_S, MOST_SLOW = 40e6, 0.8, 2  # rounds
CROSSING_S = 0.5
MEMORY_BYTES = 16 * 1024 * 1024
DEFAULT_TIMEOUT_S = 60.0
_FRAME_LIMIT = 64 * 1024 * 1024
_TCP_NOTSENT_LOWAT = 25

Flow = tuple[int, int]


def measure(
    rank: int, hosts: Sequence[str], connections: Mapping[int, socket.socket], timeout_s: float = DEFAULT_TIMEOUT_S
) -> Topology:
    """Measure the links between hosts; all ranks of a group call it together.

    Args:
        hosts: the host's name of each rank.
        connections: an idle blocking TCP connection to each other rank. They are idle and as they were afterwards.
        timeout_s: seconds for all of it.

    Returns:
        The same on all ranks.

    Raises:
        RendezvousError: a rank did not answer; names it and its host.
    """
    plain = Topology.from_hosts(hosts)
    leads = [host.ranks[0] for host in plain.hosts]
    modes = {peer: connection.gettimeout() for peer, connection in connections.items()}
    deadline = time.monotonic() + timeout_s
    for connection in connections.values():
        connection.settimeout(timeout_s)
    try:
        if rank == 0:
            return _Conductor(hosts, leads, connections, deadline).conduct()
        if rank in leads:
            _follow(leads.index(rank), hosts, {i: connections[lead] for i, lead in enumerate(leads) if lead != rank})
        return Topology.from_json(_told(connections[0], f"rank 0 ({hosts[0]})")["topology"])
    finally:
        for peer, connection in connections.items():
            with contextlib.suppress(OSError):
                connection.settimeout(modes[peer])
                connection.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, 0)


@dataclass(frozen=True)
class _Lead:
    """One host's end of all orders.

    Attributes:
        index: of the host. hosts: the host's name of each rank.
        to: the connection to each other host's lead, by the host's index.
    """

    index: int
    names: list[str]
    to: dict[int, socket.socket]

    def ping(self, rounds: Sequence[Sequence[Flow]]) -> dict[str, float]:
        """Half a round trip to each partner of ours in these rounds."""
        seconds = {}
        for pairs in rounds:
            for first, second in pairs:
                if self.index == first:
                    seconds[f"{first} {second}"] = self._ping(second)
                elif self.index == second:
                    self._pong(first)
        return seconds

    def _ping(self, other: int) -> float:
        best = float("inf")
        with self._named(other):
            for _ in range(PINGS):
                started = time.perf_counter()
                self.to[other].sendall(b".")
                _receive_exactly(self.to[other], 1)
                best = min(best, time.perf_counter() - started)
        return best / 2

    def _pong(self, other: int) -> None:
        with self._named(other):
            for _ in range(PINGS):
                self.to[other].sendall(_receive_exactly(self.to[other], 1))

    def run(self, flows: Sequence[Flow], seconds: float) -> dict[str, float]:
        """Send and receive our flows, all at once; the rates that arrived here."""
        out = [target for source, target in flows if source == self.index]
        into = [source for source, target in flows if target == self.index]
        if not out and not into:
            return {}
        with ThreadPoolExecutor(len(out) + len(into)) as pool:
            sending = [pool.submit(self._send, target, seconds) for target in out]
            receiving = {source: pool.submit(self._receive, source, seconds) for source in into}
            for future in sending:
                future.result()
            return {f"{source} {self.index}": future.result() for source, future in receiving.items()}

    def _send(self, target: int, seconds: float) -> None:
        """Blocks until the time is over; the first byte of a block says whether it is the last."""
        connection, until = self.to[target], time.perf_counter() + seconds
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        more, last = bytes(BLOCK_BYTES), b"\1" + bytes(BLOCK_BYTES - 1)
        with self._named(target):
            while time.perf_counter() < until:
                connection.sendall(more)
            connection.sendall(last)

    def _receive(self, source: int, seconds: float) -> float:
        """Bytes per second of the part that counts."""
        connection, block = self.to[source], bytearray(BLOCK_BYTES)
        view, total, is_last = memoryview(block), 0, False
        first: float | None = None
        begin, begin_bytes, now = None, 0, 0.0
        with self._named(source):
            while not is_last:
                got = 0
                while got < BLOCK_BYTES:
                    n = connection.recv_into(view[got:])
                    if not n:
                        raise OSError("the connection was closed")
                    got += n
                    total += n
                    now = time.perf_counter()
                    first = first or now
                    if begin is None and now - first >= SKIPPED * seconds:
                        begin, begin_bytes = now, total
                is_last = block[0] == 1
        if begin is None or now <= begin or first is None:
            return total / max(now - (first or 0.0), 1e-6) if first else 0.0
        return (total - begin_bytes) / (now - begin)

    @contextlib.contextmanager
    def _named(self, other: int) -> Any:
        """Socket errors as a sentence with the other host's name."""
        try:
            yield
        except OSError as error:
            raise RendezvousError(
                f"measuring links: {self.names[self.index]} lost {self.names[other]}: {error.strerror or error}"
            ) from None


def _follow(index: int, hosts: Sequence[str], to: dict[int, socket.socket]) -> None:
    """A lead other than rank 0's: carry out orders until there are no more."""
    lead = _Lead(index, [host.name for host in Topology.from_hosts(hosts).hosts], to)
    while True:
        order = _told(to[0], f"rank 0 ({hosts[0]})")
        if order["do"] == "end":
            return
        try:
            answer: dict[str, Any] = _carry_out(lead, order)
        except RendezvousError as error:
            answer = {"error": str(error)}
        send_frame(to[0], json.dumps(answer).encode())


def _carry_out(lead: _Lead, order: dict[str, Any]) -> dict[str, float]:
    if order["do"] == "ping":
        return lead.ping(order["rounds"])
    if order["do"] == "memory":
        return {str(lead.index): memory_bytes_per_s()}
    return lead.run([(source, target) for source, target in order["flows"]], order["seconds"])


class _Conductor:
    """Rank 0: gives orders, takes part in them, and makes the topology of what all tell."""

    def __init__(
        self, hosts: Sequence[str], leads: Sequence[int], connections: Mapping[int, socket.socket], deadline: float
    ) -> None:
        self._hosts, self._connections, self._deadline = tuple(hosts), connections, deadline
        self._to = {i: connections[lead] for i, lead in enumerate(leads) if lead != 0}
        self._count = len(leads)
        self._lead = _Lead(0, [host.name for host in Topology.from_hosts(hosts).hosts], self._to)
        self._flow_s = FLOW_S

    def conduct(self) -> Topology:
        try:
            topology = infer(self._readings())
        except Exception as error:
            words = str(error) if isinstance(error, RendezvousError) else repr(error)
            for connection in self._connections.values():
                with contextlib.suppress(OSError):
                    send_frame(connection, json.dumps({"error": words}).encode())
            raise
        for other in self._to:
            self._say(other, {"do": "end"})
        for rank, connection in self._connections.items():
            try:
                send_frame(connection, json.dumps({"topology": topology.to_json()}).encode())
            except OSError as error:
                raise RendezvousError(f"measuring links: rank {rank} ({self._hosts[rank]}) is gone: {error}") from None
        return topology

    def _readings(self) -> Readings:
        rounds = tournament(self._count)
        latencies = self._matrix(self._order({"do": "ping", "rounds": rounds}))
        memory = self._order({"do": "memory"})
        longest = float(latencies.max(initial=0.0))
        shared_s = MATCHINGS_S / max(1, len(rounds))
        self._flow_s = min(LONGEST_FLOW_S, max(SHORTEST_FLOW_S, min(FLOW_S, shared_s), 2 * ROUND_TRIPS * longest))
        rates = np.zeros((self._count, self._count))
        for pairs in rounds:
            rates += self._matrix(self._flows(_both_ways(pairs)), symmetric=False)
        readings = Readings(
            self._hosts, _tuples(rates), _tuples(latencies), tuple(memory[str(i)] for i in range(self._count))
        )
        readings = self._again(readings, rates)
        readings = self._fans(readings)
        readings = self._slow_hosts(readings)
        return self._crossings(readings)

    def _again(self, readings: Readings, rates: Any) -> Readings:
        """Measure pairs that were held up once more; the better reading counts."""
        slow = {tuple(sorted(pair)) for pair in held_up(readings)}
        for pairs in _matchings(slow)[:MOST_AGAIN]:
            np.maximum(rates, self._matrix(self._flows(_both_ways(pairs)), symmetric=False), out=rates)
        return replace(readings, rates=_tuples(rates))

    def _fans(self, readings: Readings) -> Readings:
        """The fastest hosts could be faster than any single other can tell."""
        up, down = capacities(readings)
        both = [min(up[i], down[i]) for i in range(self._count)]
        fastest = [i for i in range(self._count) if both[i] >= NEAR_THE_FASTEST * max(both)]
        if self._count < 3 or max(both) < SLOW_BYTES_PER_S:
            return readings
        fan_up, fan_down = dict[int, float](), dict[int, float]()
        for hub in fastest[:MOST_FANS]:
            others = [i for i in range(self._count) if i != hub]
            flows = _both_ways([(hub, other) for other in others])
            got = self._matrix(self._flows(flows, FAN_S), symmetric=False)
            fan_up[hub], fan_down[hub] = float(got[hub].sum()), float(got[:, hub].sum())
        return replace(readings, fan_up=fan_up, fan_down=fan_down)

    def _slow_hosts(self, readings: Readings) -> Readings:
        """Each with the fastest of the others that is free; a way counts where the other end is no slower."""
        up, down = capacities(readings)
        order = sorted(range(self._count), key=lambda i: -min(up[i], down[i]))
        slow = [i for i in order if min(up[i], down[i]) < SLOW_BYTES_PER_S]
        slow_up, slow_down = dict[int, float](), dict[int, float]()
        for _ in range(MOST_SLOW):
            left = [host for host in slow if host not in slow_up or host not in slow_down]
            free, pairs = list(order), list[Flow]()
            for host in left:
                partner = next((other for other in free if other != host), None)
                if host in free and partner is not None:
                    pairs.append((host, partner))
                    free = [other for other in free if other not in (host, partner)]
            if not pairs:
                break
            got = self._matrix(self._flows(_both_ways(pairs), SLOW_S), symmetric=False)
            for a, b in _both_ways(pairs):
                if a in left and down[b] >= NEAR_THE_FASTEST * up[a]:
                    slow_up[a] = float(got[a, b])
                if a in left and up[b] >= NEAR_THE_FASTEST * down[a]:
                    slow_down[a] = float(got[b, a])
        return replace(readings, slow_up=slow_up, slow_down=slow_down)

    def _crossings(self, readings: Readings) -> Readings:
        """Of groups that are slow to reach: what one pair gets alone, and what all get at once."""
        found = groups(readings)
        crossings = []
        for members in found if len(found) > 1 else []:
            outside = [i for i in range(self._count) if i not in members]
            if len(members) < 2 or len(outside) < 2:
                continue
            a, b = max(((i, j) for i in members for j in outside), key=lambda pair: readings.rates[pair[0]][pair[1]])
            alone = self._matrix(self._flows([(a, b), (b, a)]), symmetric=False)
            many = min(len(members), len(outside))
            pairs = list(zip(members[:many], outside[:many], strict=True))
            together = self._matrix(self._flows(_both_ways(pairs), CROSSING_S), symmetric=False)
            crossings.append(
                Crossing(
                    members,
                    float(alone[a, b]), float(alone[b, a]),
                    float(sum(together[i, j] for i, j in pairs)), float(sum(together[j, i] for i, j in pairs)),
                )
            )  # fmt: skip
        return replace(readings, crossings=tuple(crossings))

    def _flows(self, flows: Sequence[Flow], seconds: float = 0.0) -> dict[str, float]:
        """What the flows get, over at least `seconds`."""
        return self._order({"do": "flows", "flows": flows, "seconds": max(seconds, self._flow_s)})

    def _order(self, order: dict[str, Any]) -> dict[str, float]:
        """Have all leads carry out an order; what all of them tell, together."""
        for other in self._to:
            self._say(other, order)
        told = _carry_out(self._lead, json.loads(json.dumps(order)))
        for other, connection in self._to.items():
            connection.settimeout(max(0.01, self._deadline - time.monotonic()))
            answer = _told(connection, self._lead.names[other])
            told.update(answer)
        return told

    def _say(self, other: int, order: dict[str, Any]) -> None:
        with self._lead._named(other):
            send_frame(self._to[other], json.dumps(order).encode())

    def _matrix(self, told: dict[str, float], symmetric: bool = True) -> Any:
        matrix = np.zeros((self._count, self._count))
        for pair, value in told.items():
            i, j = map(int, pair.split())
            matrix[i, j] = value
            if symmetric:
                matrix[j, i] = value
        return matrix


def tournament(count: int) -> list[list[Flow]]:
    """Rounds in which everybody meets everybody else once: the circle method; one rests in each round if odd."""
    players: list[int | None] = [*range(count)] + ([None] if count % 2 else [])
    rounds = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        facing = zip(players[:half], reversed(players[half:]), strict=True)
        rounds.append([(min(a, b), max(a, b)) for a, b in facing if a is not None and b is not None])
        players.insert(1, players.pop())
    return rounds


def memory_bytes_per_s() -> float:
    """What copying gives here: bytes per second of one thread, beyond the cache; the best of several."""
    source, target = np.ones(MEMORY_BYTES, np.uint8), np.ones(MEMORY_BYTES, np.uint8)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - started)
    return float(f"{MEMORY_BYTES / best:.3g}")


def _matchings(pairs: set[Any]) -> list[list[Flow]]:
    """Pairs in rounds in which no host stands twice."""
    left, rounds = sorted(pairs), list[list[Flow]]()
    while left:
        used: set[int] = set()
        chosen = []
        for pair in left:
            if not used & {*pair}:
                chosen.append(pair)
                used |= {*pair}
        left = [pair for pair in left if pair not in chosen]
        rounds.append(chosen)
    return rounds


def _both_ways(pairs: Sequence[Flow]) -> list[Flow]:
    return [flow for a, b in pairs for flow in ((a, b), (b, a))]


def _tuples(matrix: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, matrix.tolist()))


def _told(connection: socket.socket, who: str) -> dict[str, Any]:
    """The next frame; what it says of an error is raised."""
    try:
        told: dict[str, Any] = json.loads(receive_frame(connection, _FRAME_LIMIT))
    except OSError as error:
        raise RendezvousError(f"measuring links: {who} does not answer: {error}") from None
    if "error" in told:
        raise RendezvousError(str(told["error"]))
    return told


def _receive_exactly(connection: socket.socket, num_bytes: int) -> bytes:
    data = connection.recv(num_bytes)
    if not data:
        raise OSError("the connection was closed")
    return data
