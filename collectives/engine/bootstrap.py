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
from dataclasses import dataclass, replace

from collectives.errors import PlanError, UsageError
from collectives.options import Options
from collectives.probe import measure, recall, remember
from collectives.probe.lead import memory_bytes_per_s
from collectives.topology import Host, Pair, Topology
from collectives.transport import rendezvous, tcp

logger = logging.getLogger(__name__)
MAX_STREAMS = 16
MAX_PROBE_S = 60.0
QUEUE_S = 0.010
NEARLY_AS_SLOW = 1.5
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


def join(
    store: rendezvous.Store, rank: int, size: int, name: str, generation: int, options: Options, timeout_s: float
) -> Joined:
    """Connect to the other ranks, and find out how fast the links between the hosts are.

    Raises:
        RendezvousError: the group could not be formed; names the rank.
        PlanError: the topology file is wrong, or not about these hosts.
    """
    requested = options.streams if isinstance(options.streams, int) else 1
    formed = rendezvous.rendezvous(store, rank, size, name, generation, options, timeout_s, requested)
    try:
        hosts = rendezvous.host_names(formed.rank_infos)
        emulated = options.emulated_rates()
        if options.topology not in (None, "equal"):
            topology, is_known = _from_file(str(options.topology), hosts), True
        elif emulated:
            topology, is_known = _emulated(hosts, emulated), True
        elif options.topology is None and len({rank_info.machine for rank_info in formed.rank_infos}) > 1:
            topology, is_known = _measured(store, rank, hosts, formed, timeout_s), True
        elif options.topology is None and size > 1:
            topology, is_known = _on_one_machine(store, rank, hosts), False
        else:
            topology, is_known = Topology.from_hosts(hosts), False
        _check_agreement(store, rank, formed.rank_infos, topology, options)
        if options.streams == "auto" and (streams := streams_for(topology, tcp.max_bytes_in_flight())) > 1:
            formed.close()
            formed = rendezvous.rendezvous(
                _Renamed(store, "streams"), rank, size, name, generation, options, timeout_s, streams
            )
        if is_known:
            _keep_queues_short(formed, rank, topology)
        if emulated:
            _pace(formed, rank, topology)
    except BaseException:
        formed.close()
        raise
    return Joined(formed, topology, is_known)


def _check_agreement(
    store: rendezvous.Store, rank: int, rank_infos: list[rendezvous.RankInfo], topology: Topology, options: Options
) -> None:
    """Every rank plans for itself, so all must plan from the same.

    Raises:
        PlanError: two ranks differ; shows both. The same on all ranks.
    """
    basis = f"{topology.to_json()}slice_bytes: {options.slice_bytes}\nwindow_bytes: {options.window_bytes}"
    store.set(f"basis/{rank}", basis)
    store.set(f"digest/{rank}", hashlib.sha256(basis.encode()).hexdigest())
    digests = [bytes(store.get(f"digest/{other}")) for other in range(len(rank_infos))]
    other = next((other for other, digest in enumerate(digests) if digest != digests[0]), None)
    if other is None:
        return
    first, second = (bytes(store.get(f"basis/{each}")).decode().splitlines() for each in (0, other))
    here, there = next(pair for pair in itertools.zip_longest(first, second, fillvalue="nothing") if len({*pair}) > 1)
    raise PlanError(
        f"{rank_infos[0].describe()} and {rank_infos[other].describe()} would plan from different links or slices:\n"
        f"  rank 0: {here.strip()}\n  rank {other}: {there.strip()}\n"
        "give all ranks the same topology file, slice_bytes and window_bytes"
    )


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
    topology = Topology.load(path)
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


def _measured(
    store: rendezvous.Store, rank: int, hosts: list[str], formed: rendezvous.Connections, timeout_s: float
) -> Topology:
    machines = [rank_info.link_key() for rank_info in formed.rank_infos]
    if rank == 0:
        found = next((known.seated(hosts) for known in _known if {*hosts} <= {h.name for h in known.hosts}), None)
        found = found or recall(hosts, machines)
        store.set("links", _MEASURE if found is None else found.to_json())
    published = bytes(store.get("links")).decode()
    if published != _MEASURE:
        topology = Topology.from_json(published)
    else:
        topology = measure(rank, hosts, formed.data, min(timeout_s, MAX_PROBE_S))
        if rank == 0:
            _keep(topology, hosts, machines)
    _known.append(topology)
    return topology


def _on_one_machine(store: rendezvous.Store, rank: int, hosts: list[str]) -> Topology:
    """There is no link to measure, only the rate at which rank 0 copies memory."""
    if rank == 0:
        store.set("memory", str(_memory_bytes_per_s()))
    measured = float(bytes(store.get("memory")))
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


class _Renamed:
    """A part of a store, under a name of its own."""

    def __init__(self, store: rendezvous.Store, name: str) -> None:
        self.underlying_store, self._name = store, name

    def set(self, key: str, value: str) -> object:
        return self.underlying_store.set(f"{self._name}/{key}", value)

    def get(self, key: str) -> bytes:
        return self.underlying_store.get(f"{self._name}/{key}")

    def check(self, keys: list[str]) -> bool:
        return self.underlying_store.check([f"{self._name}/{key}" for key in keys])
