"""How many workers each pool gets, so that the predicted throughput is highest: (pools, demand, links) -> assignment.

A search over counts, in two passes, since an exact forecast plans an all-reduce, which takes milliseconds to seconds,
while a bound on the throughput (`forecast.at_best`) takes microseconds.

    1. Climb: hill climbing by the bound from several starts. Every placement that it sees is kept as a candidate.
    2. Plan: forecast the candidates exactly, highest bound first, and stop as soon as the bound of the next one does
       not exceed the best exact throughput. No candidate after it can be better, because its bound is lower still.

So the second pass finds the best of all candidates unless it runs out of plans (`_MAX_PLANS`). The first pass is a
heuristic: a placement that no climb sees is never planned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from collectives.topology import Topology
from launcher.planning.forecast import Demand, Forecast, RankPace, at_best, equal_shares, forecast
from launcher.planning.pools import Pool

Counts = tuple[int, ...]
"""Workers of each pool, in the order of the pools."""
_CLEARLY = 1 + 1e-9
"""Ratio above which one throughput is higher than another: sums of floats in another order differ by less."""
_MAX_STARTS = 6
_MAX_PLANS, _MIN_PLANS = 2000, 8
"""Exact forecasts in one search: 2000 over the square of the hosts, since planning takes about that much longer for
more hosts, but at least 8."""


@dataclass(frozen=True)
class Assignment:
    """Workers of each pool, in the order of the pools, and the forecast for them."""

    counts: Counts
    forecast: Forecast


@dataclass
class SearchSpace:
    """What a search chooses from, and what it has computed so far.

    Attributes:
        pools: fastest first.
        links: of all nodes, with one rank each.
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
        """Throughput that no plan can exceed; 0 with too few or too many workers, or if the batch does not fit."""
        if counts not in self._bounds:
            allowed = self.least <= sum(counts) <= self.most
            self._bounds[counts] = at_best(self.demand, self.paces(counts), self.topology(counts)) if allowed else 0.0
        return self._bounds[counts]

    def exact(self, counts: Counts) -> Forecast | None:
        """The forecast by the planner; None if the batch does not fit. Equivalent placements share one forecast."""
        key = self.key(counts)
        if key not in self._forecasts:
            self._forecasts[key] = forecast(self.demand, self.paces(counts), self.topology(counts))
        return self._forecasts[key]

    def equal(self, counts: Counts) -> Forecast | None:
        """The forecast with equal shares of the batch; None if some rank's memory cannot hold its share."""
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
        """The speed of each rank."""
        return [self.pools[pool].pace for pool in self.seating(counts)]

    def topology(self, counts: Counts) -> Topology:
        """The links of the nodes that have workers, with these workers as ranks."""
        return self.links.seated([self.pools[pool].node for pool in self.seating(counts)])

    def seating(self, counts: Counts) -> list[int]:
        """The pool of each rank. Ranks of one node are consecutive, whatever pools of the node they come from."""
        by_node: dict[str, list[int]] = {}
        for pool, count in enumerate(counts):
            by_node.setdefault(self.pools[pool].node, []).extend([pool] * count)
        return [pool for ranks in by_node.values() for pool in ranks]

    def key(self, counts: Counts) -> object:
        """The same for placements that differ only in which of several equal nodes they use.

        A farm of ten equal nodes has thousands of such placements and one forecast for all of them. Limits of single
        pairs of hosts make every node different, so with them the counts are the key.
        """
        if self.links.pairs:
            return counts
        by_node: dict[str, list[object]] = {}
        for pool, count in zip(self.pools, counts, strict=True):
            if count:
                by_node.setdefault(pool.node, []).append((pool.pace, count))
        # Sorted by repr, since a site may be None, which has no order among texts.
        return tuple(sorted(repr((self.link(node), workers)) for node, workers in by_node.items()))

    def link(self, node: str) -> object:
        """What a forecast depends on of a node's link. Equal values are interchangeable."""
        host = next(host for host in self.links.hosts if host.name == node)
        site = next((site.name for site in self.links.sites if node in site.hosts), None)
        return host.up_bytes_per_s, host.down_bytes_per_s, host.memory_bytes_per_s, host.latency_s, site


def choose(
    space: SearchSpace, allowed: Callable[[Counts], bool] = lambda counts: True, starts: Sequence[Counts] = ()
) -> Assignment | None:
    """The counts with the highest predicted throughput; None if there is no room for the workers or the batch.

    Args:
        allowed: False excludes counts from the search.
        starts: where to climb from, in addition to the usual starts.
    """

    def bound(counts: Counts) -> float:
        return space.bound(counts) if allowed(counts) else 0.0

    possible = [start for start in (*starts, *_starts(space)) if bound(start) > 0]
    candidates: set[Counts] = set()
    for start in sorted(possible, key=bound, reverse=True)[:_MAX_STARTS]:
        _climb(space, start, bound, candidates)
    return _best(space, candidates, bound)


def _climb(space: SearchSpace, counts: Counts, bound: Callable[[Counts], float], candidates: set[Counts]) -> None:
    """Move to the neighbour with the highest bound until no neighbour is better. Adds all that it sees to the
    candidates, not only its path: the bound ranks neighbours roughly, and the second pass decides between them.

    A climb ends early where an earlier one has been, because it would go the same way from there.
    """
    while counts not in candidates:
        candidates.add(counts)
        near = [other for other in _neighbours(space, counts) if bound(other) > 0]
        unseen = set(near) - candidates
        best = max(near, key=bound, default=counts)
        if bound(best) > bound(counts) * _CLEARLY:
            candidates |= unseen - {best}  # without the next position, which would end the loop
            counts = best
        else:
            candidates |= unseen


def _best(space: SearchSpace, candidates: set[Counts], bound: Callable[[Counts], float]) -> Assignment | None:
    """The candidate with the highest exact throughput, as far as the number of plans allows."""
    left = max(_MIN_PLANS, _MAX_PLANS // len({pool.node for pool in space.pools}) ** 2)
    best: Assignment | None = None
    planned: set[object] = set()
    # Highest bound first. Of equal bounds the one with fewer workers, then the one with more workers in faster pools:
    # the order decides between equal placements, so it must not depend on the order of the set.
    for counts in sorted(candidates, key=lambda counts: (-bound(counts), sum(counts), [-count for count in counts])):
        if best is not None and (left == 0 or bound(counts) <= best.forecast.throughput * _CLEARLY):
            break
        key = space.key(counts)
        left -= key not in planned  # a forecast that is already known costs nothing
        planned.add(key)
        found = space.exact(counts)
        if found is not None and (best is None or found.throughput > best.forecast.throughput * _CLEARLY):
            best = Assignment(counts, found)
    return best


def _starts(space: SearchSpace) -> Iterator[Counts]:
    """The first n pools, filled, for every n, with the pools ordered by speed, by link, and by total speed.

    Good placements often use the fastest devices, or the best links, or few large nodes; one of the orders comes close
    to each, and a climb from there needs few steps.
    """
    links = {host.name: min(host.up_bytes_per_s, host.down_bytes_per_s) for host in space.links.hosts}
    pools = space.pools
    orders = (
        sorted(range(len(pools)), key=lambda i: -pools[i].pace.samples_per_s),
        sorted(range(len(pools)), key=lambda i: (-links[pools[i].node], -pools[i].pace.samples_per_s)),
        sorted(range(len(pools)), key=lambda i: -pools[i].pace.samples_per_s * pools[i].capacity),
    )
    for order in orders:
        counts, left = [0] * len(pools), space.most
        for pool in order:
            counts[pool] = min(pools[pool].capacity, left)
            left -= counts[pool]
            yield tuple(counts)
            if not left:
                break


def _neighbours(space: SearchSpace, counts: Counts) -> Iterator[Counts]:
    """Counts that differ by one move: a pool emptied, filled, one worker more or less; or one worker, or as many as
    possible, moved from one pool to another.

    Large moves matter, since half a node is often worse than the whole node and than none of it: its link is then used
    by fewer workers. Moves between pools matter where the number of workers is fixed.
    """
    used = [pool for pool, count in enumerate(counts) if count]
    free = [pool for pool, count in enumerate(counts) if count < space.pools[pool].capacity]
    room = space.most - sum(counts)
    for pool in used:
        yield from {_changed(counts, {pool: -counts[pool]}), _changed(counts, {pool: -1})}
    for pool in free:
        more = min(room, space.pools[pool].capacity - counts[pool])
        if more > 0:
            yield from {_changed(counts, {pool: more}), _changed(counts, {pool: 1})}
    for source in used:
        for target in free:
            if source != target:
                most = min(counts[source], space.pools[target].capacity - counts[target])
                yield from {_changed(counts, {source: -n, target: n}) for n in {1, most}}


def _changed(counts: Counts, by: dict[int, int]) -> Counts:
    return tuple(count + by.get(pool, 0) for pool, count in enumerate(counts))
