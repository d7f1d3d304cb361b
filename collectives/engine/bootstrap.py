"""Before a group's engine starts: its connections, and what is known of the links between its hosts.

    options.topology    where the rates come from
    a path              the file; its hosts must be those of the ranks
    None                measured, once for a set of hosts: from this process's other groups, else from rank 0's cache,
                        else by a probe that takes seconds. On one machine only its memory is measured
    "equal"             nowhere: links are taken to be equal

Emulated links have the given rates. Rank 0 publishes the topology, so all ranks plan with the same numbers.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from collectives.errors import PlanError, UsageError
from collectives.options import Options
from collectives.planning.planner import plan
from collectives.probe import measure, recall, remember
from collectives.probe.lead import memory_bytes_per_s
from collectives.schedule.op import Collective
from collectives.topology import Host, Pair, Topology
from collectives.transport import rendezvous, tcp
from collectives.transport.rank_info import differing_math

logger = logging.getLogger(__name__)
MAX_STREAMS = 16
MAX_PROBE_S = 60.0
QUEUE_S = 0.010
NEARLY_AS_SLOW = 1.5
PLANS_COMPARED: tuple[tuple[Collective, int], ...] = (("all_reduce", 10_000), ("all_reduce", 25_000_000))
_MEASURE = "measure"
_known: list[Topology] = []


@dataclass
class Joined:
    """A formed group.

    Attributes:
        topology: hosts and links, equal on all ranks.
        is_known: whether the rates are more than an assumption.
    """

    connections: rendezvous.Connections
    topology: Topology
    is_known: bool


def join(meeting: rendezvous.Rendezvous, options: Options) -> Joined:
    """Find out how fast the links between the hosts are, and make as many connections as they need.

    Args:
        meeting: of the group's ranks, with their control connections.

    Raises:
        RendezvousError: the group could not be formed; names the rank.
        PlanError: the topology file is wrong, or not about these hosts.
    """
    rank_infos, rank = meeting.rank_infos, meeting.rank
    hosts = rendezvous.host_names(rank_infos)
    meeting.open_streams(first_streams(rank_infos))
    emulated = options.emulated_rates()
    if options.topology not in (None, "equal"):
        topology, is_known = _from_file(str(options.topology), hosts), True
    elif emulated:
        topology, is_known = _emulated(hosts, emulated), True
    elif options.topology is None and len({rank_info.machine for rank_info in rank_infos}) > 1:
        topology, is_known = _measured(meeting, hosts), True
    elif options.topology is None and meeting.size > 1:
        topology, is_known = _on_one_machine(meeting, hosts), False
    else:
        topology, is_known = Topology.from_hosts(hosts), False
    _check_agreement(meeting, topology, options)
    meeting.open_streams(meeting.store.decide("streams", lambda: final_streams(rank_infos, topology)))
    if is_known:
        _keep_queues_short(meeting.connections, rank, topology)
    if emulated:
        _pace(meeting.connections, rank, topology)
    return Joined(meeting.connections, topology, is_known)


def _check_agreement(meeting: rendezvous.Rendezvous, topology: Topology, options: Options) -> None:
    """Every rank plans for itself, so all must plan from the same, and come to the same.

    Raises:
        PlanError: two ranks differ; shows both. The same on all ranks.
    """
    rank_infos = meeting.rank_infos
    basis = f"{topology.to_json()}slice_bytes: {options.slice_bytes}\nwindow_bytes: {options.window_bytes}"
    meeting.store.publish("basis", basis)
    digests = meeting.store.gather("digest", hashlib.sha256(basis.encode()).hexdigest())
    other = next((other for other, digest in enumerate(digests) if digest != digests[0]), None)
    if other is not None:
        first, second = (str(meeting.store.read("basis", each)).splitlines() for each in (0, other))
        lines = itertools.zip_longest(first, second, fillvalue="nothing")
        here, there = next(pair for pair in lines if len({*pair}) > 1)
        who, whom = rank_infos[0].describe(), rank_infos[other].describe()
        raise PlanError(
            f"{who} and {whom} would plan from different links or slices:\n"
            f"  rank 0: {here.strip()}\n  rank {other}: {there.strip()}\n"
            "give all ranks the same topology file, slice_bytes and window_bytes"
        )
    versions = differing_math(rank_infos)
    if versions is not None:
        plans = meeting.store.gather("plans", [plan(topology, *each).fingerprint() for each in PLANS_COMPARED])
        if any(each != plans[0] for each in plans):
            raise PlanError(f"different versions of numpy or scipy make different plans: {versions}; install the same")
        logger.info("versions of numpy and scipy differ, and the plans do not: %s", versions)


def first_streams(rank_infos: Sequence[rendezvous.RankInfo]) -> int:
    """Connections for slices that each pair of ranks has at least: the smallest number that a rank's options ask for,
    but one for each interface of the rank that has most."""
    asked = [each.streams for each in rank_infos if each.streams is not None]
    return max(min(asked, default=1), *(each.interfaces for each in rank_infos), 1)


def final_streams(rank_infos: Sequence[rendezvous.RankInfo], topology: Topology) -> int:
    """As `first_streams`; where no rank asks for a number, as many as the links need."""
    if any(each.streams is not None for each in rank_infos):
        return first_streams(rank_infos)
    needed = streams_for(topology, min(each.max_in_flight for each in rank_infos))
    return max(first_streams(rank_infos), needed)


def streams_for(topology: Topology, max_bytes: int) -> int:
    """How many connections a pair of ranks needs to fill any link: the largest bandwidth-delay product over what one
    connection may have in flight, twice, since a connection that lost a packet continues with half."""
    leads = [host.ranks[0] for host in topology.hosts]
    most = 0.0
    for a in leads:
        for b in leads:
            if topology.host_index(a) != topology.host_index(b):
                rate = min(topology.links[link].bytes_per_s for link in topology.route(a, b))
                most = max(most, rate * 2 * topology.latency_s(a, b))
    return min(MAX_STREAMS, max(1, math.ceil(2 * most / max_bytes)))


def _from_file(path: str, hosts: list[str]) -> Topology:
    """The file's links between these hosts: by name if it names them all, else by the ranks that it gives each.

    Raises:
        PlanError: it fits neither way, or has ranks of different hosts on one.
    """
    try:
        topology = Topology.load(path)
    except OSError as error:
        raise PlanError(f"{path}: the topology file cannot be read here: {error.strerror or error}") from None
    named = {host.name for host in topology.hosts}
    if {*hosts} <= named:
        return topology.seated(hosts)
    if topology.size != len(hosts):
        unknown = ", ".join(sorted({*hosts} - named))
        raise PlanError(
            f"{path}: hosts: got ranks 0 to {topology.size - 1} and no host called {unknown}; wanted the hosts "
            f"{', '.join(sorted({*hosts}))}, or hosts with ranks 0 to {len(hosts) - 1}"
        )
    for index, host in enumerate(topology.hosts):
        if len({hosts[rank] for rank in host.ranks}) > 1:
            found = ", ".join(f"rank {rank} on {hosts[rank]}" for rank in host.ranks)
            raise PlanError(f"{path}: hosts[{index}].ranks ({host.name!r}): these are on several hosts: {found}")
    return topology


def _measured(meeting: rendezvous.Rendezvous, hosts: list[str]) -> Topology:
    machines = [rank_info.link_key() for rank_info in meeting.rank_infos]

    def known() -> str:
        found = next((known.seated(hosts) for known in _known if {*hosts} <= {h.name for h in known.hosts}), None)
        found = found or recall(hosts, machines)
        return _MEASURE if found is None else found.to_json()

    published = str(meeting.store.decide("links", known))
    if published != _MEASURE:
        topology = Topology.from_json(published)
    else:
        left_s = meeting.store.deadline - time.monotonic()
        topology = measure(meeting.rank, hosts, meeting.connections.data, max(1.0, min(left_s, MAX_PROBE_S)))
        if meeting.rank == 0:
            _keep(topology, hosts, machines)
    _known.append(topology)
    return topology


def _on_one_machine(meeting: rendezvous.Rendezvous, hosts: list[str]) -> Topology:
    """There is no link to measure, only the rate at which rank 0 copies memory."""
    measured = float(meeting.store.decide("memory", _memory_bytes_per_s))
    plain = Topology.from_hosts(hosts)
    return replace(plain, hosts=tuple(replace(host, memory_bytes_per_s=measured) for host in plain.hosts))


_memory_bytes_per_s = functools.cache(memory_bytes_per_s)


def _keep(topology: Topology, hosts: list[str], machines: list[str]) -> None:
    try:
        logger.info("measured the links of %d hosts: %s", len(topology.hosts), remember(topology, hosts, machines))
    except OSError as error:
        logger.warning("the measured links cannot be remembered, so they are measured each time: %s", error)


def _emulated(hosts: list[str], rates: list[float]) -> Topology:
    """Hosts with these up and down rates; between two of them no more than an even part of either, see `_pace`."""
    plain = Topology.from_hosts(hosts)
    if len(plain.hosts) != len(rates):
        names = ", ".join(host.name for host in plain.hosts)
        raise UsageError(f"emulate gives the rates of {len(rates)} hosts; this group has {len(plain.hosts)}: {names}")
    others = max(1, len(rates) - 1)
    return Topology(
        tuple(
            Host(host.name, host.ranks, up_bytes_per_s=rate, down_bytes_per_s=rate)
            for host, rate in zip(plain.hosts, rates, strict=True)
        ),
        pairs=tuple(
            Pair(a.name, b.name, min(rates[i], rates[j]) / others)
            for i, a in enumerate(plain.hosts)
            for j, b in enumerate(plain.hosts)
            if i != j
        ),
    )


def _keep_queues_short(formed: rendezvous.Connections, rank: int, topology: Topology) -> None:
    """On routes over a slow link, limit what is in flight to a round trip and a short queue, divided among the hosts.
    Where a route has several such links, as between two slow hosts, they share that queue. A message has the queue to
    itself: unlike slices, messages do not go to all hosts at once."""
    for peer, connection in [*formed.data, *formed.messages.items()]:
        if topology.host_index(peer) != topology.host_index(rank):
            rates = [topology.links[link].bytes_per_s for link in topology.route(rank, peer)]
            slowest = min(rates)
            queues = sum(rate <= NEARLY_AS_SLOW * slowest for rate in rates)
            streams = sum(each == peer for each, _ in formed.data)
            seconds = 2 * topology.latency_s(rank, peer) + QUEUE_S / queues
            sharers = 1 if connection is formed.messages[peer] else (len(topology.hosts) - 1) * streams
            tcp.limit_in_flight(connection, slowest * seconds / sharers)


def _pace(formed: rendezvous.Connections, rank: int, topology: Topology) -> None:
    """Slow this rank's connections down to the emulated links. The kernel paces each connection by itself, so a host's
    rate is dealt out evenly beforehand: what one connection leaves unused no other can take, unlike on a real link.
    Messages get as much as all slices between two ranks: they are rarely under way together."""
    own = topology.host_of(rank)
    for peer, connection in [*formed.data, *formed.messages.items()]:
        other = topology.host_of(peer)
        if other.name == own.name:
            continue
        streams = 1 if connection is formed.messages[peer] else sum(each == peer for each, _ in formed.data)
        connections = streams * len(own.ranks) * len(other.ranks)
        pair = next(pair for pair in topology.pairs if (pair.source, pair.target) == (own.name, other.name))
        tcp.pace(connection, pair.bytes_per_s / connections)
