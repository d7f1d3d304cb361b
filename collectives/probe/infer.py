"""From readings to a topology: a pure function.

    up_i, down_i     what host i was seen to send and to receive in its best matchings (their median, as each is off
                     a little), or with all others at once if that is far more
    pair (i, j)      what went from i to j, where that is well below up_i and down_j, and no site explains it
    site             hosts that reach each other at full speed, but together send no more to others than one alone does
    latency_i        least squares of (latency_i + latency_j) / 2 [+ the sites'] against what pairs took, none negative
    memory_i         as measured

Rates that differ by less than the noise are made equal, so that equal links get a plain plan.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from collectives.topology import Host, Pair, Site, Topology

NEAR_BEST = 0.93  # readings of a host that are this near its best show its own link, not a slower partner's
FULL = 0.7  # a pair that gets less of what its hosts can do is held up by something
FASTER = 1.25  # several flows that get more than so many times what one got show more of a link than it did
SHARED = 0.75  # hosts that together get less than this of what each got alone share an uplink
NOISE = 0.04
EVENLY = 1e-3  # how much an even split of latencies weighs against one that was measured


@dataclass(frozen=True)
class Crossing:
    """What a group of hosts sends to, and gets from, the others: one of its hosts alone, and all at once."""

    members: tuple[int, ...]
    alone_up: float
    alone_down: float
    together_up: float
    together_down: float

    def turned(self, others: tuple[int, ...]) -> Crossing:
        """The same as the others see it, if they are all the others."""
        return Crossing(others, self.alone_down, self.alone_up, self.together_down, self.together_up)


@dataclass(frozen=True)
class Readings:
    """What was measured, by the hosts' positions in the order of their lowest ranks. Bytes per second, seconds.

    Attributes:
        hosts: the host's name of each rank.
        rates: from host (row) to host (column), all pairs of a matching at once; 0 on the diagonal.
        latencies: half a round trip; 0 on the diagonal.
        memory: what copying gives, for each host.
        fan_up, fan_down: with all others at once, for hosts that no single other one could fill.
        crossings: of groups whose hosts reach each other faster than the others.
    """

    hosts: tuple[str, ...]
    rates: tuple[tuple[float, ...], ...]
    latencies: tuple[tuple[float, ...], ...]
    memory: tuple[float, ...]
    fan_up: dict[int, float] = field(default_factory=dict)
    fan_down: dict[int, float] = field(default_factory=dict)
    crossings: tuple[Crossing, ...] = ()


def infer(readings: Readings) -> Topology:
    """The topology that explains the readings."""
    plain = Topology.from_hosts(readings.hosts)
    up, down = capacities(readings)
    sites = _sites(readings, plain)
    x, site_s = _latencies(readings, sites)
    hosts = tuple(
        Host(host.name, host.ranks, up[i], down[i], readings.memory[i], x[i]) for i, host in enumerate(plain.hosts)
    )
    built = tuple(
        Site(f"site {plain.hosts[crossing.members[0]].name}", tuple(plain.hosts[i].name for i in crossing.members),
             _tidy(_more(crossing.alone_up, crossing.together_up)),
             _tidy(_more(crossing.alone_down, crossing.together_down)), site_s[index])
        for index, crossing in enumerate(sites)
    )  # fmt: skip
    site_of = {i: index for index, crossing in enumerate(sites) for i in crossing.members}
    pairs = tuple(
        Pair(plain.hosts[i].name, plain.hosts[j].name, _tidy(readings.rates[i][j]))
        for i, j in held_up(readings)
        if site_of.get(i) == site_of.get(j)
    )
    return Topology(hosts, built, pairs)


def capacities(readings: Readings) -> tuple[list[float], list[float]]:
    """Up and down of each host, the noise taken off."""
    rates, count = np.array(readings.rates).reshape(len(readings.memory), -1), len(readings.memory)
    if count == 1:
        return [Host.up_bytes_per_s], [Host.down_bytes_per_s]
    up = [_more(_best(rates[i]), readings.fan_up.get(i, 0.0)) for i in range(count)]
    down = [_more(_best(rates[:, i]), readings.fan_down.get(i, 0.0)) for i in range(count)]
    even = _evened(up + down)
    return even[:count], even[count:]


def _best(rates: npt.NDArray[np.float64]) -> float:
    """The median of those that are near the largest."""
    return float(np.median(rates[rates >= NEAR_BEST * rates.max()]))


def _more(alone: float, together: float) -> float:
    """What several flows got counts only if it is far more: the sum of their rates is less exact than one flow's."""
    return together if together > FASTER * alone else alone


def held_up(readings: Readings) -> list[tuple[int, int]]:
    """Pairs that get well below what their hosts can do."""
    up, down = capacities(readings)
    hosts = range(len(up))
    return [(i, j) for i in hosts for j in hosts if i != j and readings.rates[i][j] < FULL * min(up[i], down[j])]


def groups(readings: Readings) -> list[tuple[int, ...]]:
    """Hosts that reach each other at full speed, directly or by others; more than one if some pairs are held up."""
    slow = set(held_up(readings))
    left, found = set(range(len(readings.memory))), []
    while left:
        group, edge = set(), {min(left)}
        while edge:
            group |= edge
            edge = {j for i in edge for j in left - group if (i, j) not in slow and (j, i) not in slow}
        left -= group
        found.append(tuple(sorted(group)))
    return found


def _sites(readings: Readings, plain: Topology) -> list[Crossing]:
    """The groups whose hosts share an uplink: all at once they got no more than a little above what one got alone."""
    sites = []
    for crossing in readings.crossings:
        many = min(len(crossing.members), len(plain.hosts) - len(crossing.members))
        shared_up = crossing.together_up < SHARED * many * crossing.alone_up
        shared_down = crossing.together_down < SHARED * many * crossing.alone_down
        if many > 1 and (shared_up or shared_down):
            sites.append(crossing)
    return sites


def _latencies(readings: Readings, sites: Sequence[Crossing]) -> tuple[list[float], list[float]]:
    """Of each host and each site."""
    count = len(readings.memory)
    if count == 1:
        return [Host.latency_s], []
    site_of = {i: index for index, crossing in enumerate(sites) for i in crossing.members}
    rows, wanted = [], []
    for i in range(count):
        for j in range(i + 1, count):
            row = np.zeros(count + len(sites))
            row[[i, j]] = 0.5
            if site_of.get(i) != site_of.get(j):
                row[[count + site_of[host] for host in (i, j) if host in site_of]] = 1.0
            rows.append(row)
            wanted.append(readings.latencies[i][j])
    # Where several splits explain it, the even one: of two hosts, each gets what the pair took.
    rows += [*EVENLY * np.eye(count + len(sites))]
    wanted += [0.0] * (count + len(sites))
    found, _ = nnls(np.array(rows), np.array(wanted))
    return [_tidy(each) for each in found[:count]], [_tidy(each) for each in found[count:]]


def _evened(rates: list[float]) -> list[float]:
    """Rates that lie within the noise of each other become their median."""
    order = sorted(range(len(rates)), key=lambda i: rates[i])
    evened, start = list(rates), 0
    for end in range(1, len(order) + 1):
        if end == len(order) or rates[order[end]] > (1 + NOISE) * rates[order[start]]:
            middle = _tidy(statistics.median(rates[i] for i in order[start:end]))
            for i in order[start:end]:
                evened[i] = middle
            start = end
    return evened


def _tidy(value: float) -> float:
    return float(f"{value:.4g}")
