"""Measures the links between hosts, on connections that exist already.

The lowest rank of each host is its lead, and rank 0 coordinates: it sends an order to every lead, the leads carry it
out at the same time, and each answers with its readings.

    latency      ping-pongs in matchings, before there is any load
    matchings    n - 1 rounds of disjoint pairs, as in a tournament
    again        pairs below their hosts' rates, once more, in case other traffic was in the way
    fans         a host whose link no single other host can fill, with all others at once
    crossings    groups of hosts that are slow to reach from outside: one pair alone, then all at once

Disjoint pairs measure at once, because n (n - 1) flows one by one would take minutes. Pairs behind one switch do not
disturb each other; pairs that share an uplink do, are found slow, and the crossings tell the two apart.

A host sends or receives, never both at once: acknowledgements in a queue behind the host's own data would delay, and so
slow down, what it receives, most of all on shaped links.

A flow lasts some tenths of a second, and the receiver counts only its second part: TCP's slow start, and the burst that
a shaper lets through after a pause, are over by then. A sender keeps little data in its socket, so that a slow link is
free again soon after the flow.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from collectives.errors import RendezvousError
from collectives.probe.infer import FASTER, Crossing, Readings, capacities, groups, infer, slow_pairs
from collectives.probe.lead import NOTSENT_LOWAT, Lead, reason, set_deadline
from collectives.probe.rounds import Flow, matchings, tournament, trios
from collectives.topology import Topology
from collectives.transport.tcp import receive_frame, send_frame

FLOW_S, MIN_FLOW_S, MAX_FLOW_S = 0.3, 0.1, 1.5
MATCHINGS_S = 1.8  # for all rounds together; with many hosts flows become shorter, down to MIN_FLOW_S
ROUND_TRIPS = 15  # of TCP's slow start; a flow must last longer
AGAIN_S, MAX_AGAIN_ROUNDS = 0.2, 2
NEAR_THE_FASTEST, FAN_S, MAX_FANS = 0.9, 0.15, 4
DEFAULT_TIMEOUT_S = 60.0
MAX_STEP_S, SEND_ERROR_S = 1.0, 0.2
_FRAME_LIMIT = 64 * 1024 * 1024


def measure(
    rank: int,
    hosts: Sequence[str],
    streams: Sequence[tuple[int, socket.socket]],
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Topology:
    """Measure the links between hosts; all ranks of a group call it together.

    Args:
        hosts: for each rank the name of its host.
        streams: (rank, idle TCP connection), one or more for each other rank; several belong to several interfaces, and
            flows use them at once. Afterwards they are idle, with their former settings; after an error they are
            unusable.
        timeout_s: seconds for the whole measurement.

    Returns:
        The topology, the same on all ranks.

    Raises:
        RendezvousError: a rank did not answer; the message names it and its host.
    """
    plain = Topology.from_hosts(hosts)
    leads = [host.ranks[0] for host in plain.hosts]
    names = [f"rank {host.ranks[0]} ({host.name})" for host in plain.hosts]
    before = [(each, each.gettimeout(), _unsent_bytes(each)) for _, each in streams]
    connections: dict[int, socket.socket] = {}
    beside: dict[int, list[socket.socket]] = {}
    for peer, connection in streams:
        if connections.setdefault(peer, connection) is not connection and peer in leads:
            beside.setdefault(leads.index(peer), []).append(connection)
    # Deadlines in steps, so that all ranks end with the same error. Rank 0 stops measuring first: from then on what
    # arrives is an answer, not part of a flow. Then the other leads stop and answer. Then rank 0 stops waiting for
    # answers and sends the error to all, before their own time is over.
    deadline, step_s = time.monotonic() + timeout_s, min(MAX_STEP_S, timeout_s / 9)
    give_up_at = deadline - (3 if rank == 0 else 2) * step_s
    try:
        if rank in leads:
            to = {index: connections[lead] for index, lead in enumerate(leads) if lead != rank}
            own = Lead(leads.index(rank), names, to, give_up_at, beside)
            if rank == 0:
                return _Coordinator(hosts, own, connections, deadline - step_s).run()
            _follow(own, deadline)
        return Topology.from_json(_receive_from_rank_0(connections[0], names[0], deadline)["topology"])
    finally:
        for connection, mode, unsent_bytes in before:
            with contextlib.suppress(OSError):
                connection.settimeout(mode)
                connection.setsockopt(socket.IPPROTO_TCP, NOTSENT_LOWAT, unsent_bytes)


def _unsent_bytes(connection: socket.socket) -> int:
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, NOTSENT_LOWAT)
    except OSError:  # it is closed; its first use will raise
        return 0


def _follow(lead: Lead, deadline: float) -> None:
    """A lead other than rank 0's: carry out orders until the last one."""
    coordinator = lead.to[0]
    while True:
        order = _receive_from_rank_0(coordinator, lead.names[0], deadline)
        if order["do"] == "end":
            return
        answer = lead.carry_out(order)
        try:
            set_deadline(coordinator, deadline)
            send_frame(coordinator, json.dumps(answer).encode())
        except OSError as error:
            who = lead.names[0]
            raise RendezvousError(f"measuring links: cannot send the answer to {who}: {reason(error)}") from None


def _receive_from_rank_0(connection: socket.socket, who: str, deadline: float) -> dict[str, Any]:
    """The next message of rank 0; an error in it is raised."""
    try:
        set_deadline(connection, deadline)
        message = _frame(connection)
    except OSError as error:
        raise RendezvousError(f"measuring links: {who} does not answer: {reason(error)}") from None
    if "error" in message:
        raise RendezvousError(str(message["error"]))
    return message


def _frame(connection: socket.socket) -> dict[str, Any]:
    data = receive_frame(connection, _FRAME_LIMIT)
    try:
        frame: dict[str, Any] = json.loads(data)
    except ValueError:
        raise OSError(f"got {data[:20]!r} where a message was expected") from None
    return frame


class _Coordinator:
    """Rank 0: gives orders, takes part in them, and infers the topology from all answers.

    Args:
        connections: to all other ranks, leads or not.
        answers_until: when to give up on an answer; time.monotonic, seconds.
    """

    def __init__(
        self, hosts: Sequence[str], lead: Lead, connections: Mapping[int, socket.socket], answers_until: float
    ) -> None:
        self._hosts, self._lead, self._connections = tuple(hosts), lead, connections
        self._to, self._count = lead.to, len(lead.names)
        self._answers_until = answers_until
        self._least_s = MIN_FLOW_S

    def run(self) -> Topology:
        try:
            topology = infer(self._readings())
        except Exception as error:
            message = str(error) if isinstance(error, RendezvousError) else f"{self._lead.names[0]}: {error!r}"
            self._send_to_all({"error": message}, time.monotonic() + SEND_ERROR_S)
            raise
        for connection in self._to.values():
            with contextlib.suppress(OSError):  # sending the topology will fail, too, and names the rank
                set_deadline(connection, self._answers_until)
                send_frame(connection, json.dumps({"do": "end"}).encode())
        if gone := self._send_to_all({"topology": topology.to_json()}, self._answers_until):
            raise RendezvousError(f"measuring links: {'; '.join(gone)}")
        return topology

    def _send_to_all(self, what: dict[str, str], until: float) -> list[str]:
        """Send `what` to all other ranks, past those that are gone; returns a sentence about each of these."""
        gone = []
        for rank, connection in self._connections.items():
            try:
                set_deadline(connection, until)
                send_frame(connection, json.dumps(what).encode())
            except OSError as error:
                gone.append(f"rank {rank} ({self._hosts[rank]}) is gone: {reason(error)}")
        return gone

    def _readings(self) -> Readings:
        rounds = tournament(self._count)
        latencies = self._matrix(self._order({"do": "ping", "rounds": rounds}))
        memory = self._order({"do": "memory"})
        self._least_s = min(MAX_FLOW_S, 2 * ROUND_TRIPS * float(latencies.max(initial=0.0)) + MIN_FLOW_S)
        each_s = min(FLOW_S, MATCHINGS_S / max(1, 2 * len(rounds)))
        rates = np.zeros((self._count, self._count))
        for pairs in rounds:
            rates += self._both_ways(pairs, each_s)
        readings = Readings(
            self._hosts, _tuples(rates), _tuples(latencies), tuple(memory[str(i)] for i in range(self._count))
        )
        readings = self._again(readings, rates)
        readings = self._fans(readings)
        return self._crossings(readings)

    def _again(self, readings: Readings, rates: Any) -> Readings:
        """Measure slow pairs once more; the better reading counts."""
        slow = {(min(pair), max(pair)) for pair in slow_pairs(readings)}
        for pairs in matchings(slow)[:MAX_AGAIN_ROUNDS]:
            np.maximum(rates, self._both_ways(pairs, AGAIN_S), out=rates)
        return replace(readings, rates=_tuples(rates))

    def _fans(self, readings: Readings) -> Readings:
        """Measure the fastest hosts with several others at once: no single partner can show a rate above its own.

        First each with a few partners for a short time; only those that get more that way are measured with all.
        """
        up, down = capacities(readings)
        both = [min(up[i], down[i]) for i in range(self._count)]
        fastest = [i for i in range(self._count) if both[i] >= NEAR_THE_FASTEST * max(both)]
        if self._count > 2 and len(fastest) <= MAX_FANS:  # few enough to meet all others, so that slow ones add up
            fans = [[(center, other) for other in range(self._count) if other != center] for center in fastest]
        else:
            fans = trios(fastest, range(self._count))
        faster = [
            center
            for group in fans
            for center, got_up, got_down in self._fan(group, FAN_S)
            if got_up > FASTER * up[center] or got_down > FASTER * down[center]
        ]
        fan_up, fan_down = dict[int, float](), dict[int, float]()
        for center in faster[:MAX_FANS]:
            others = [other for other in range(self._count) if other != center]
            ((_, fan_up[center], fan_down[center]),) = self._fan([(center, other) for other in others], FLOW_S)
        return replace(readings, fan_up=fan_up, fan_down=fan_down)

    def _fan(self, pairs: Sequence[Flow], seconds: float) -> list[tuple[int, float, float]]:
        """For each center, the first of a pair: itself, and its rates to and from all its partners at once."""
        got = self._both_ways(pairs, seconds)
        return [(center, float(got[center].sum()), float(got[:, center].sum())) for center in dict(pairs)]

    def _crossings(self, readings: Readings) -> Readings:
        """For groups that are slow to reach: the rate of one pair alone, and that of all hosts at once."""
        found = [group for group in groups(readings) if len(group) < self._count]
        crossings = dict[tuple[int, ...], Crossing]()
        for members in found:
            outside = tuple(i for i in range(self._count) if i not in members)
            if min(len(members), len(outside)) < 2:
                continue
            if outside in crossings:  # the same links seen from their other end
                crossings[members] = crossings[outside].turned(members)
                continue
            a, b = max(((i, j) for i in members for j in outside), key=lambda pair: readings.rates[pair[0]][pair[1]])
            alone = self._both_ways([(a, b)], FLOW_S)
            pairs = list(zip(members, outside, strict=False))
            together = self._both_ways(pairs, FLOW_S)
            crossings[members] = Crossing(
                members,
                float(alone[a, b]), float(alone[b, a]),
                float(sum(together[i, j] for i, j in pairs)), float(sum(together[j, i] for i, j in pairs)),
            )  # fmt: skip
        return replace(readings, crossings=tuple(crossings.values()))

    def _both_ways(self, pairs: Sequence[Flow], seconds: float) -> Any:
        """Rates between the hosts of these pairs: all first to second at once, then all second to first."""
        return self._flows(pairs, seconds) + self._flows([(b, a) for a, b in pairs], seconds)

    def _flows(self, flows: Sequence[Flow], seconds: float) -> Any:
        """Rates of flows that run at once, for `seconds` or longer if TCP's slow start takes longer."""
        order = {"do": "flows", "flows": flows, "seconds": max(seconds, self._least_s)}
        return self._matrix(self._order(order), symmetric=False)

    def _order(self, order: dict[str, Any]) -> dict[str, float]:
        """Have all leads carry out an order; returns the readings of all.

        Raises:
            RendezvousError: a lead did not answer, which the message names, or an answer reports a problem.
        """
        gone = dict[int, str]()
        for other, connection in self._to.items():
            try:
                set_deadline(connection, self._lead.deadline)
                send_frame(connection, json.dumps(order).encode())
            except OSError as error:
                gone[other] = reason(error)
        answers = [self._lead.carry_out(order)]  # even if some are gone: the other leads wait for us
        for other, connection in self._to.items():
            try:
                if other not in gone:
                    set_deadline(connection, self._answers_until)
                    answers.append(_frame(connection))
            except OSError as error:
                gone[other] = reason(error)
        problems = [f"{self._lead.names[other]} does not answer: {why}" for other, why in sorted(gone.items())]
        problems = problems or [answer["problems"][0] for answer in answers if answer["problems"]]
        if problems:
            raise RendezvousError(f"measuring links: {'; '.join(problems)}")
        return {key: value for answer in answers for key, value in answer["got"].items()}

    def _matrix(self, values: dict[str, float], symmetric: bool = True) -> Any:
        matrix = np.zeros((self._count, self._count))
        for pair, value in values.items():
            i, j = map(int, pair.split())
            matrix[i, j] = value
            if symmetric:
                matrix[j, i] = value
        return matrix


def _tuples(matrix: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, matrix.tolist()))
