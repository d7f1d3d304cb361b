"""Alternatives to a placement and their forecasts: without a node or with one more, with equal batches, with the
fastest kind of device alone, with faster links, with another codec. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from collectives.topology import Host, Site, Topology
from launcher.planning.forecast import Forecast, forecast
from launcher.planning.pools import Pool
from launcher.planning.search import Assignment, Counts, SearchSpace, choose


@dataclass(frozen=True)
class Effect:
    """What one node contributes to the job.

    Attributes:
        used: whether the plan puts workers there.
        throughput: of the best placement without the node if it is used, with it if not; None if there is none.
    """

    node: str
    used: bool
    throughput: float | None


@dataclass(frozen=True)
class Other:
    """Another way to run the job: in words, its number of ranks, and its forecast; None if it does not fit."""

    what: str
    ranks: int
    forecast: Forecast | None


def effects(space: SearchSpace, chosen: Assignment) -> tuple[Effect, ...]:
    """The effect of each node. Equal nodes with equally many workers are computed once."""
    computed: dict[object, float | None] = {}
    found = []
    for node in dict.fromkeys(pool.node for pool in space.pools):
        own = [(i, pool) for i, pool in enumerate(space.pools) if pool.node == node]
        counts = tuple(chosen.counts[i] for i, _ in own)
        # Each effect is a search, and farms have many equal nodes. As in `SearchSpace.key`, limits of pairs of hosts
        # make every node different.
        kind = (counts, tuple((pool.device, pool.capacity, pool.pace) for _, pool in own), space.link(node))
        key: object = node if space.links.pairs else kind
        if key not in computed:
            computed[key] = _toggled(space, chosen.counts, [i for i, _ in own], used=any(counts))
        found.append(Effect(node, any(counts), computed[key]))
    return tuple(found)


def _toggled(space: SearchSpace, chosen: Counts, pools: Sequence[int], used: bool) -> float | None:
    """The best throughput without these pools if they are used, with some of them if they are not.

    The other nodes keep their workers, so that the difference is the effect of this node alone. Only if that is
    impossible, since the job needs more workers than are left, the rest is placed anew.
    """

    def allowed(counts: Counts) -> bool:
        return any(counts[i] for i in pools) != used

    def rest_keeps(counts: Counts) -> bool:
        others = [i for i in range(len(counts)) if i not in pools]
        if used:
            return allowed(counts) and all(counts[i] <= chosen[i] for i in others)
        return allowed(counts) and all(counts[i] >= chosen[i] for i in others)

    # The plan with only this node changed: mostly the answer, or one step from it.
    toggled = tuple((0 if used else space.pools[i].capacity) if i in pools else n for i, n in enumerate(chosen))
    found = choose(space, rest_keeps, [toggled]) or choose(space, allowed)
    return None if found is None else found.forecast.throughput


def others(space: SearchSpace) -> tuple[Other, ...]:
    """What a user would do by hand: all nodes with equal batches, and the fastest kind of device alone."""
    # Equal batches are what a launcher does that knows nothing of speeds, so this is the baseline.
    every = tuple(pool.capacity for pool in space.pools)
    fastest = space.pools[0].device
    kinds = {pool.device for pool in space.pools}
    found = [Other("all nodes, equal batches", sum(every), space.equal(every))]
    if len(kinds) > 1:
        pools = [pool for pool in space.pools if pool.device == fastest]
        alone = choose(_only(space, pools, 1, sum(pool.capacity for pool in pools)))
        found.append(Other(f"only {fastest}", sum(alone.counts) if alone else 0, alone.forecast if alone else None))
    return tuple(found)


def _only(space: SearchSpace, pools: Sequence[Pool], least: int, most: int) -> SearchSpace:
    return SearchSpace(pools, space.demand, space.links, least, most)


def what_if(space: SearchSpace, chosen: Assignment) -> tuple[Other, ...]:
    """The same ranks with the bottleneck twice as fast, and with each other codec."""
    found, count = chosen.forecast, sum(chosen.counts)
    paces, topology = space.paces(chosen.counts), space.topology(chosen.counts)
    if found.communication_s is None or found.bottleneck is None:
        return ()
    faster = _doubled(topology, found.bottleneck)
    ways = [Other(faster[1], count, forecast(space.demand, paces, faster[0]))] if faster else []
    ways += [
        Other(f"codec {codec}", count, forecast(replace(space.demand, codec=codec), paces, topology))
        for codec in (found.plan.codecs if found.plan else ())
        if codec != found.codec
    ]
    return tuple(ways)


def _doubled(topology: Topology, link: str) -> tuple[Topology, str] | None:
    """The topology with a link twice as fast in both directions, and that in words; None for memory and for pairs.

    Equally slow links are doubled too: doubling one of several equal bottlenecks would change nothing.
    """
    way, _, name = link.partition(" of ")
    if way not in ("up", "down"):
        return None
    rate = next(found.bytes_per_s for found in topology.links if found.name == link)
    rate *= 1.001  # measured rates of equal links differ a little
    of_sites = name.startswith("site ") and any(site.name == name[5:] for site in topology.sites)
    rows: Sequence[Host | Site] = topology.sites if of_sites else topology.hosts
    slow = [row for row in rows if min(row.up_bytes_per_s, row.down_bytes_per_s) <= rate]
    words = f"{link}" + (f" and {len(slow) - 1} like it" if len(slow) > 1 else "") + " twice as fast"
    if of_sites:
        return replace(topology, sites=tuple(_twice(row) if row in slow else row for row in topology.sites)), words
    return replace(topology, hosts=tuple(_twice(row) if row in slow else row for row in topology.hosts)), words


_Row = TypeVar("_Row", Host, Site)


def _twice(row: _Row) -> _Row:
    return replace(row, up_bytes_per_s=2 * row.up_bytes_per_s, down_bytes_per_s=2 * row.down_bytes_per_s)
