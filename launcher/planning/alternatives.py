"""What else could be done than what is planned, and what that would give: without a node or with one more, with equal
batches, with the fastest kind alone, with faster links, with another codec. No I/O."""

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
    """What one node does to the job.

    Attributes:
        used: whether it carries workers.
        throughput: of the best placement without it if it is used, with it if it is not; None if there is none.
    """

    node: str
    used: bool
    throughput: float | None


@dataclass(frozen=True)
class Other:
    """Another way to run the job: what it is, how many ranks, what it takes; None if it does not fit."""

    what: str
    ranks: int
    forecast: Forecast | None


def effects(field: SearchSpace, chosen: Assignment) -> tuple[Effect, ...]:
    """Of each node; alike nodes are tried once."""
    known: dict[object, float | None] = {}
    found = []
    for node in dict.fromkeys(pool.node for pool in field.pools):
        own = [(i, pool) for i, pool in enumerate(field.pools) if pool.node == node]
        counts = tuple(chosen.counts[i] for i, _ in own)
        kind = (counts, tuple((pool.device, pool.places, pool.pace) for _, pool in own), field.link(node))
        key: object = node if field.links.pairs else kind
        if key not in known:
            known[key] = _turned(field, chosen.counts, [i for i, _ in own], used=any(counts))
        found.append(Effect(node, any(counts), known[key]))
    return tuple(found)


def _turned(field: SearchSpace, chosen: Counts, pools: Sequence[int], used: bool) -> float | None:
    """The throughput without these pools if they are used, with some of them if they are not. The others stay as they
    are as far as possible: another node takes the place only if there have to be as many workers."""

    def allowed(counts: Counts) -> bool:
        return any(counts[i] for i in pools) != used

    def rest_stays(counts: Counts) -> bool:
        others = [i for i in range(len(counts)) if i not in pools]
        if used:
            return allowed(counts) and all(counts[i] <= chosen[i] for i in others)
        return allowed(counts) and all(counts[i] >= chosen[i] for i in others)

    turned = tuple((0 if used else field.pools[i].places) if i in pools else n for i, n in enumerate(chosen))
    found = choose(field, rest_stays, [turned]) or choose(field, allowed)
    return None if found is None else found.forecast.throughput


def others(field: SearchSpace) -> tuple[Other, ...]:
    every = tuple(pool.places for pool in field.pools)
    fastest = field.pools[0].device
    kinds = {pool.device for pool in field.pools}
    found = [Other("all nodes, equal batches", sum(every), field.equal(every))]
    if len(kinds) > 1:
        pools = [pool for pool in field.pools if pool.device == fastest]
        alone = choose(_only(field, pools, 1, sum(pool.places for pool in pools)))
        found.append(Other(f"only {fastest}", sum(alone.counts) if alone else 0, alone.forecast if alone else None))
    return tuple(found)


def _only(field: SearchSpace, pools: Sequence[Pool], least: int, most: int) -> SearchSpace:
    return SearchSpace(pools, field.demand, field.links, least, most)


def what_if(field: SearchSpace, chosen: Assignment) -> tuple[Other, ...]:
    """The same ranks with the bottleneck twice as fast, and with each other codec."""
    found, count = chosen.forecast, sum(chosen.counts)
    paces, topology = field.paces(chosen.counts), field.topology(chosen.counts)
    if found.communication_s is None or found.bottleneck is None:
        return ()
    faster = _doubled(topology, found.bottleneck)
    ways = [Other(faster[1], count, forecast(field.demand, paces, faster[0]))] if faster else []
    ways += [
        Other(f"codec {codec}", count, forecast(replace(field.demand, codec=codec), paces, topology))
        for codec in (found.plan.codecs if found.plan else ())
        if codec != found.codec
    ]
    return tuple(ways)


def _doubled(topology: Topology, link: str) -> tuple[Topology, str] | None:
    """With the named link and all of its sort that are no faster doubled, both ways, and that in words; None if it
    is memory or the limit of a pair."""
    way, _, name = link.partition(" of ")
    if way not in ("up", "down"):
        return None
    rate = next(found.bytes_per_s for found in topology.links if found.name == link) * 1.001
    of_sites = name.startswith("site ") and any(site.name == name[5:] for site in topology.sites)
    rows: Sequence[Host | Site] = topology.sites if of_sites else topology.hosts
    slow = [row for row in rows if min(row.up_bytes_per_s, row.down_bytes_per_s) <= rate]
    told = f"{link}" + (f" and {len(slow) - 1} like it" if len(slow) > 1 else "") + " twice as fast"
    if of_sites:
        return replace(topology, sites=tuple(_twice(row) if row in slow else row for row in topology.sites)), told
    return replace(topology, hosts=tuple(_twice(row) if row in slow else row for row in topology.hosts)), told


_Row = TypeVar("_Row", Host, Site)


def _twice(row: _Row) -> _Row:
    return replace(row, up_bytes_per_s=2 * row.up_bytes_per_s, down_bytes_per_s=2 * row.down_bytes_per_s)
