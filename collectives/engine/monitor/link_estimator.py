"""Links as the engine's own traffic shows them: free, while training goes on.

A flow is what one rank has sent to another. The kernel counts for it the bytes that were acknowledged and the seconds
during which some were under way and neither side's program held them up, so its rate while it was busy is known. Over
some seconds of ops, with T the time that they took:

    rate_f     = bytes_f / busy_f                     while there was something to send
    carried_l  = sum of bytes_f over the flows through link l, / T       l can do at least that
    peak_l     = max rate_f over them                                    and at least that
    offered_l  = sum of rate_f over them              what went through l while all of them were busy

A link can do at least max(carried, peak): if that is more than was assumed, it can do up to what was offered, within
reason, since flows are not always busy at the same time. If the ops took longer than planned, some link has become
slower. A flow that was busy most of T was held up by a link; if all on its route can do clearly more than what was
offered to them, it is the one that was offered the least of its capacity, and it can do just that. A link that was
lowered before and no longer keeps any flow busy all the time is believed again, up to what it could do when it was
measured. So is every lowered link when the ops took clearly less than planned: others limit them now, and what queues
there keeps all flows busy.

All ranks hold the same numbers and so come to the same result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from collectives.topology import Topology

MIN_BYTES = 256 * 1024  # a flow of less says nothing of a link
HELD_UP = 0.8  # of T: a flow that was busy longer waited for a link
UNHINDERED = 0.9  # of T: a link none of whose flows was busy longer can do more
SLOWER, FASTER = 0.9, 1.05  # of what was assumed: anything between is noise
LATE = 1.08  # times what was planned: before that nothing has become slower
EARLY = 0.9  # of what was planned: what has become slower once is so no longer
MAX_RAISE = 1.5  # of what a link did at least, where it is faster than was assumed


@dataclass(frozen=True)
class Traffic:
    """What the ranks sent each other during some ops.

    Attributes:
        seconds: how long the ops took.
        planned_s: how long they should have taken.
        num_bytes, busy_s: from rank (row) to rank (column); 0 where ranks share memory.
    """

    seconds: float
    planned_s: float
    num_bytes: NDArray[np.float64]
    busy_s: NDArray[np.float64]


def estimate_links(topology: Topology, measured: Topology, traffic: Traffic) -> Topology:
    """The topology with the rates that the traffic shows.

    Args:
        topology: what is assumed now.
        measured: what was measured or given in the beginning: the same hosts, sites and pairs.
    """
    links = [link.bytes_per_s for link in topology.links]
    once = [link.bytes_per_s for link in measured.links]
    flows = _flows(topology, traffic)
    offered, carried, peak, busiest = ([0.0] * len(links) for _ in range(4))
    for route, num_bytes, busy_s in flows:
        for link in route:
            offered[link] += num_bytes / busy_s
            carried[link] += num_bytes / traffic.seconds
            peak[link] = max(peak[link], num_bytes / busy_s)
            busiest[link] = max(busiest[link], busy_s)
    seen = list(links)
    for link, assumed in enumerate(links):
        least = max(carried[link], peak[link])
        if assumed < once[link] and traffic.seconds < EARLY * traffic.planned_s:
            least = max(least, once[link])
        elif assumed < once[link] and busiest[link] < UNHINDERED * traffic.seconds:
            least = max(least, min(once[link], offered[link]))
        elif least > FASTER * assumed:
            least = max(least, min(offered[link], MAX_RAISE * least))
        if least > FASTER * assumed:
            seen[link] = least
    raised = list(seen)
    for route, _, busy_s in flows if traffic.seconds > LATE * traffic.planned_s else ():
        if busy_s < HELD_UP * traffic.seconds:
            continue
        narrowest = min(route, key=lambda link: offered[link] / raised[link])
        if offered[narrowest] < SLOWER * raised[narrowest]:
            seen[narrowest] = min(seen[narrowest], offered[narrowest])
    return _with_rates(topology, seen)


def changes(before: Topology, after: Topology) -> list[str]:
    """The links whose rates differ, in words: "up of d: 11.9 to 6.0 MB/s"."""
    return [
        f"{old.name}: {old.bytes_per_s / 1e6:.1f} to {new.bytes_per_s / 1e6:.1f} MB/s"
        for old, new in zip(before.links, after.links, strict=True)
        if not SLOWER <= new.bytes_per_s / old.bytes_per_s <= 1 / SLOWER
    ]


def _flows(topology: Topology, traffic: Traffic) -> list[tuple[tuple[int, ...], float, float]]:
    """Route, bytes and busy seconds of each flow between hosts that says something."""
    flows = []
    for source, target in np.argwhere((traffic.num_bytes >= MIN_BYTES) & (traffic.busy_s > 0)).tolist():
        if topology.host_index(source) != topology.host_index(target):
            num_bytes, busy_s = float(traffic.num_bytes[source, target]), float(traffic.busy_s[source, target])
            flows.append((topology.route(source, target), num_bytes, busy_s))
    return flows


def _with_rates(topology: Topology, rates: list[float]) -> Topology:
    """The topology with other rates of its links, given in the order of `links`; memory stays as it is."""
    left = iter(rates)
    hosts = []
    for host in topology.hosts:
        up, down, _ = next(left), next(left), next(left)
        hosts.append(replace(host, up_bytes_per_s=up, down_bytes_per_s=down))
    sites = [replace(site, up_bytes_per_s=next(left), down_bytes_per_s=next(left)) for site in topology.sites]
    pairs = [replace(pair, bytes_per_s=next(left)) for pair in topology.pairs]
    return Topology(tuple(hosts), tuple(sites), tuple(pairs))
