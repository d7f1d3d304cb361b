"""How many workers each pool gets, so that the predicted throughput is highest: (pools, demand, links) -> assignment.

A search over counts, in two passes. The first climbs from several starts by the throughput that no plan can exceed
(`forecast.at_best`), which takes microseconds. The second asks the planner about the counts that the first one saw,
best first, and ends as soon as none that is left could beat the best: the first pass's number is an upper bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from collectives.topology import Topology
from launcher.planning.forecast import Demand, Forecast, RankPace, at_best, equal_shares, forecast
from launcher.planning.pools import Pool

Counts = tuple[int, ...]
_SURELY = 1 + 1e-9
_PLANS = 2000
"""Plans are costly where there are many hosts, so at most this many over the hosts squared are made in one search."""


@dataclass(frozen=True)
class Assignment:
    """Workers of each pool, in the order of the pools, and what that gives."""

    counts: Counts
    forecast: Forecast


@dataclass
class SearchSpace:
    """What all of a search goes by.

    Attributes:
        least, most: workers in all.
    """

    pools: Sequence[Pool]
    demand: Demand
    links: Topology
    least: int
    most: int
    _bounds: dict[Counts, float] = field(default_factory=dict)
    _forecasts: dict[object, Forecast | None] = field(default_factory=dict)

    def bound(self, counts: Counts) -> float:
        """Throughput that no plan can exceed; 0 where there are too few workers or too many, or the batch won't fit."""
        if counts not in self._bounds:
            fits = self.least <= sum(counts) <= self.most
            self._bounds[counts] = at_best(self.demand, self.paces(counts), self.topology(counts)) if fits else 0.0
        return self._bounds[counts]

    def exact(self, counts: Counts) -> Forecast | None:
        """By the planner; None if the batch does not fit. Alike nodes make alike forecasts, so those are shared."""
        key = self.key(counts)
        if key not in self._forecasts:
            self._forecasts[key] = forecast(self.demand, self.paces(counts), self.topology(counts))
        return self._forecasts[key]

    def equal(self, counts: Counts) -> Forecast | None:
        """The same with equal batches; None if some rank's memory does not hold its part."""
        paces = self.paces(counts)
        shares = equal_shares(self.demand, len(paces))
        if any(
            pace.most_samples is not None and share > pace.most_samples
            for pace, share in zip(paces, shares, strict=True)
            if self.demand.global_batch is not None
        ):
            return None
        return forecast(self.demand, paces, self.topology(counts), shares)

    def paces(self, counts: Counts) -> list[RankPace]:
        return [self.pools[pool].pace for pool in self.seating(counts)]

    def topology(self, counts: Counts) -> Topology:
        return self.links.seated([self.pools[pool].node for pool in self.seating(counts)])

    def seating(self, counts: Counts) -> list[int]:
        """The pool of each rank, node by node, so that a node's ranks are neighbours."""
        order: dict[str, list[int]] = {}
        for pool, count in enumerate(counts):
            order.setdefault(self.pools[pool].node, []).extend([pool] * count)
        return [pool for ranks in order.values() for pool in ranks]

    def key(self, counts: Counts) -> object:
        if self.links.pairs:
            return counts
        by_node: dict[str, list[object]] = {}
        for pool, count in zip(self.pools, counts, strict=True):
            if count:
                by_node.setdefault(pool.node, []).append((pool.pace, count))
        return tuple(sorted(repr((self.link(node), kept)) for node, kept in by_node.items()))

    def link(self, node: str) -> object:
        host = next(host for host in self.links.hosts if host.name == node)
        site = next((site.name for site in self.links.sites if node in site.hosts), None)
        return host.up_bytes_per_s, host.down_bytes_per_s, host.memory_bytes_per_s, host.latency_s, site


def choose(
    field: SearchSpace, allowed: Callable[[Counts], bool] = lambda counts: True, starts: Sequence[Counts] = ()
) -> Assignment | None:
    """The counts with the highest predicted throughput; None if there is no room for the workers or the batch.

    Args:
        allowed: which counts are not ruled out beforehand.
        starts: to begin the search at, beside the usual ones.
    """

    def bound(counts: Counts) -> float:
        return field.bound(counts) if allowed(counts) else 0.0

    seen: set[Counts] = set()
    first = sorted((start for start in (*starts, *_starts(field)) if bound(start) > 0), key=bound, reverse=True)
    for start in first[:6]:
        _climb(field, start, bound, seen)
    hosts = len({pool.node for pool in field.pools})
    left = max(8, _PLANS // hosts**2)
    best: Assignment | None = None
    asked: set[object] = set()
    for counts in sorted(seen, key=lambda counts: (-bound(counts), sum(counts), [-count for count in counts])):
        if best is not None and (left == 0 or bound(counts) <= best.forecast.throughput * _SURELY):
            break
        key = field.key(counts)
        left -= key not in asked
        asked.add(key)
        found = field.exact(counts)
        if found is not None and (best is None or found.throughput > best.forecast.throughput * _SURELY):
            best = Assignment(counts, found)
    return best


def _climb(field: SearchSpace, counts: Counts, bound: Callable[[Counts], float], seen: set[Counts]) -> None:
    """To the best neighbour, and on from there until none is better. Notes all that can be at all."""
    while counts not in seen:
        seen.add(counts)
        near = [other for other in _neighbours(field, counts) if bound(other) > 0]
        seen_now = set(near) - seen
        best = max(near, key=bound, default=counts)
        if bound(best) > bound(counts) * _SURELY:
            seen |= seen_now - {best}
            counts = best
        else:
            seen |= seen_now


def _starts(field: SearchSpace) -> Iterator[Counts]:
    """The first so many pools, full, with the pools by speed, by link, and by size."""
    links = {host.name: min(host.up_bytes_per_s, host.down_bytes_per_s) for host in field.links.hosts}
    pools = field.pools
    orders = (
        sorted(range(len(pools)), key=lambda i: -pools[i].pace.samples_per_s),
        sorted(range(len(pools)), key=lambda i: (-links[pools[i].node], -pools[i].pace.samples_per_s)),
        sorted(range(len(pools)), key=lambda i: -pools[i].pace.samples_per_s * pools[i].places),
    )
    for order in orders:
        counts, left = [0] * len(pools), field.most
        for pool in order:
            counts[pool] = min(pools[pool].places, left)
            left -= counts[pool]
            yield tuple(counts)
            if not left:
                break


def _neighbours(field: SearchSpace, counts: Counts) -> Iterator[Counts]:
    """One pool emptied, filled, one more or one less; or as many as possible or one moved from a pool to another."""
    used = [pool for pool, count in enumerate(counts) if count]
    free = [pool for pool, count in enumerate(counts) if count < field.pools[pool].places]
    room = field.most - sum(counts)
    for pool in used:
        yield from {_changed(counts, {pool: -counts[pool]}), _changed(counts, {pool: -1})}
    for pool in free:
        space = min(room, field.pools[pool].places - counts[pool])
        if space > 0:
            yield from {_changed(counts, {pool: space}), _changed(counts, {pool: 1})}
    for source in used:
        for target in free:
            if source != target:
                space = min(counts[source], field.pools[target].places - counts[target])
                yield from {_changed(counts, {source: -n, target: n}) for n in {1, space}}


def _changed(counts: Counts, by: dict[int, int]) -> Counts:
    return tuple(count + by.get(pool, 0) for pool, count in enumerate(counts))
