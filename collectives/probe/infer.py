"""From readings to a topology: a pure function.

    up_i, down_i     the rate at which host i sent and received in its best matchings (their median, since each is a
                     little off), or with all others at once if that is far more
    pair (i, j)      the rate from i to j, if it is well below up_i and down_j and no site explains it
    site             hosts that reach each other at full speed, but together send no more to others than one alone
    latency_i        least squares of (latency_i + latency_j) / 2 [+ the sites'] against the pairs' latencies, all >= 0
    memory_i         as measured

Rates that differ by less than the noise are made equal: otherwise equal links would get a plan with unequal shares, and
another one at each start.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from collectives.topology import Host, Pair, Site, Topology

NEAR_BEST = 0.93  # readings of a host within this factor of its best are of its own link, not of a slower partner's
FULL = 0.7  # a pair below this fraction of its hosts' rates is slowed down by something between them
FASTER = 1.25  # several flows count only if they get more than so many times the rate of one
SHARED = 0.75  # hosts that together get less than this fraction of the sum of their rates alone share an uplink
NOISE = 0.04  # relative
EVENLY = 1e-3  # weight of an even split of latencies against measured ones


@dataclass(frozen=True)
class Crossing:
    """Bytes per second between a group of hosts and the others: of one pair of hosts alone, and of all at once."""

    members: tuple[int, ...]
    alone_up: float
    alone_down: float
    together_up: float
    together_down: float

    def turned(self, others: tuple[int, ...]) -> Crossing:
        """The same crossing seen from the other side; `others` must be all other hosts."""
        return Crossing(others, self.alone_down, self.alone_up, self.together_down, self.together_up)


@dataclass(frozen=True)
class Readings:
    """Measurements, indexed by the hosts' positions in the order of their lowest ranks. Bytes per second, seconds.

    Attributes:
        hosts: for each rank the name of its host.
        rates: from host (row) to host (column), while all pairs of a matching were active; 0 on the diagonal.
        latencies: half a round trip; 0 on the diagonal.
        memory: rate of copying in memory, for each host.
        fan_up, fan_down: rates with all others at once, for hosts whose links no single other host can fill.
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
        for i, j in slow_pairs(readings)
        if site_of.get(i) == site_of.get(j)
    )
    return Topology(hosts, built, pairs)


def capacities(readings: Readings) -> tuple[list[float], list[float]]:
    """Up and down of each host; rates that differ by less than the noise are equal."""
    rates, count = np.array(readings.rates).reshape(len(readings.memory), -1), len(readings.memory)
    if count == 1:
        return [Host.up_bytes_per_s], [Host.down_bytes_per_s]
    up = [_more(_best(rates[i]), readings.fan_up.get(i, 0.0)) for i in range(count)]
    down = [_more(_best(rates[:, i]), readings.fan_down.get(i, 0.0)) for i in range(count)]
    even = _evened(up + down)
    return even[:count], even[count:]


def _best(rates: npt.NDArray[np.float64]) -> float:
    """The median of the rates that are near the largest."""
    return float(np.median(rates[rates >= NEAR_BEST * rates.max()]))


def _more(alone: float, together: float) -> float:
    """The rate of several flows if it is far more, else that of one: a sum of several rates is less exact."""
    return together if together > FASTER * alone else alone


def slow_pairs(readings: Readings) -> list[tuple[int, int]]:
    """Pairs (i, j) whose rate is well below the rates of their hosts."""
    up, down = capacities(readings)
    hosts = range(len(up))
    return [(i, j) for i in hosts for j in hosts if i != j and readings.rates[i][j] < FULL * min(up[i], down[j])]


def groups(readings: Readings) -> list[tuple[int, ...]]:
    """Connected groups of hosts, where hosts are connected that reach each other at full speed in both directions."""
    slow = set(slow_pairs(readings))
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
    """The groups whose hosts share an uplink: all at once got hardly more than one pair alone."""
    sites = []
    for crossing in readings.crossings:
        many = min(len(crossing.members), len(plain.hosts) - len(crossing.members))
        shared_up = crossing.together_up < SHARED * many * crossing.alone_up
        shared_down = crossing.together_down < SHARED * many * crossing.alone_down
        if many > 1 and (shared_up or shared_down):
            sites.append(crossing)
    return sites


def _latencies(readings: Readings, sites: Sequence[Crossing]) -> tuple[list[float], list[float]]:
    """Latency of each host and of each site, in seconds."""
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
    # If several splits of a pair's latency fit, the even one: of two hosts, each gets the latency of the pair.
    rows += [*EVENLY * np.eye(count + len(sites))]
    wanted += [0.0] * (count + len(sites))
    found, _ = nnls(np.array(rows), np.array(wanted))
    return [_tidy(each) for each in found[:count]], [_tidy(each) for each in found[count:]]


def _evened(rates: list[float]) -> list[float]:
    """Rates within the noise of each other become their median."""
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
    """Four digits, which is more than measurements hold."""
    return float(f"{value:.4g}")
