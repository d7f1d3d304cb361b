"""The network of a plan: hosts, sites and links with their loads, from plan.json. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_HOSTS_IN_MATRIX = 10
MAX_PAIRS_LISTED = 12


@dataclass(frozen=True)
class Link:
    """A directed link.

    Attributes:
        bytes_per_s: of payload.
        load: fraction of the predicted time in which it is busy, 0 to 1; None without a plan.
        bottleneck: whether it limits the plan.
    """

    name: str
    bytes_per_s: float
    load: float | None
    bottleneck: bool


@dataclass(frozen=True)
class NetworkHost:
    """A host. Links whose rates are unknown are None."""

    name: str
    ranks: tuple[int, ...]
    up: Link | None
    down: Link | None
    memory: Link | None


@dataclass(frozen=True)
class Site:
    """Hosts that share an uplink."""

    name: str
    hosts: tuple[NetworkHost, ...]
    up: Link | None
    down: Link | None


@dataclass(frozen=True)
class Pair:
    """A path between two hosts that is slower than their links."""

    source: str
    target: str
    link: Link


@dataclass(frozen=True)
class Network:
    """The whole network. `groups` are sites and hosts in no site, in order of their lowest rank."""

    groups: tuple[Site | NetworkHost, ...]
    pairs: tuple[Pair, ...]
    links: tuple[Link, ...]

    @property
    def hosts(self) -> list[NetworkHost]:
        """All hosts, whether in a site or not."""
        return [host for group in self.groups for host in (group.hosts if isinstance(group, Site) else (group,))]

    @property
    def outer_links(self) -> list[Link]:
        """The links of hosts and sites, which the diagram draws."""
        ends: list[Site | NetworkHost] = [*self.hosts, *(group for group in self.groups if isinstance(group, Site))]
        return [link for end in ends for link in (end.up, end.down) if link is not None]

    @property
    def matrix(self) -> list[tuple[str, list[Link | None]]] | None:
        """A row for each host at which slower pairs start, a cell for each target. None without pairs, or with too many
        hosts for a table."""
        names = [host.name for host in self.hosts]
        if not self.pairs or len(names) > MAX_HOSTS_IN_MATRIX:
            return None
        known = {(pair.source, pair.target): pair.link for pair in self.pairs}
        sources = [name for name in names if any(pair.source == name for pair in self.pairs)]
        return [(source, [known.get((source, target)) for target in names]) for source in sources]

    @property
    def busiest_pairs(self) -> list[Pair]:
        """The pairs with the highest loads, where there are too many hosts for the matrix."""
        ordered = sorted(self.pairs, key=lambda pair: -(pair.link.load or 0.0))
        return ordered[:MAX_PAIRS_LISTED] if self.matrix is None else []


def network(seats: Sequence[Mapping[str, Any]], plan: Mapping[str, Any] | None) -> Network | None:
    """The network of the plan's topology; without a plan, the hosts of the seats; None without either.

    Args:
        seats, plan: of plan.json.
    """
    if plan and plan.get("topology"):
        return _planned(plan)
    ranks: dict[str, list[int]] = {}
    for seat in seats:
        ranks.setdefault(str(seat["host"]), []).append(int(seat["rank"]))
    hosts = tuple(NetworkHost(name, tuple(members), None, None, None) for name, members in ranks.items())
    return Network(hosts, (), ()) if hosts else None


def _planned(plan: Mapping[str, Any]) -> Network:
    topology = plan["topology"]
    links = _Links(plan)

    def host_of(host: Mapping[str, Any]) -> NetworkHost:
        name = host["name"]
        return NetworkHost(
            name=name,
            ranks=tuple(host["ranks"]),
            up=links(f"up of {name}", host["up_bytes_per_s"]),
            down=links(f"down of {name}", host["down_bytes_per_s"]),
            memory=links(f"memory of {name}", host["memory_bytes_per_s"]),
        )

    hosts = {host["name"]: host_of(host) for host in topology["hosts"]}
    site_of = {name: site for site in topology.get("sites", ()) for name in site["hosts"]}
    groups: dict[str, Site | NetworkHost] = {}
    for name, one in hosts.items():
        site = site_of.get(name)
        if site is None:
            groups[f"host {name}"] = one
            continue
        groups.setdefault(
            f"site {site['name']}",
            Site(
                name=site["name"],
                hosts=tuple(each for host, each in hosts.items() if host in site["hosts"]),
                up=links(f"up of site {site['name']}", site["up_bytes_per_s"]),
                down=links(f"down of site {site['name']}", site["down_bytes_per_s"]),
            ),
        )
    pairs = tuple(
        Pair(row["source"], row["target"], links(f"{row['source']} to {row['target']}", row["bytes_per_s"]))
        for row in topology.get("pairs", ())
    )
    return Network(tuple(groups.values()), pairs, tuple(links.made))


class _Links:
    """Makes links with their loads by the plan. `made` has all of them.

    Equal links are equally busy up to rounding, and all of them limit the plan, though its `bottleneck` names one.
    """

    def __init__(self, plan: Mapping[str, Any]) -> None:
        self._busy_s = {link["name"]: float(link["busy_s"]) for link in plan.get("links", ())}
        self._predicted_s = float(plan.get("predicted_s") or 0.0)
        self._busiest_s = max(self._busy_s.values(), default=0.0)
        self._bottleneck = plan.get("bottleneck")
        self.made: list[Link] = []

    def __call__(self, name: str, bytes_per_s: float) -> Link:
        busy_s = self._busy_s.get(name, 0.0)
        load = min(busy_s / self._predicted_s, 1.0) if self._predicted_s and self._busy_s else None
        limits = self._bottleneck is not None and (name == self._bottleneck or 0 < 0.999 * self._busiest_s <= busy_s)
        link = Link(name, float(bytes_per_s), load, limits)
        self.made.append(link)
        return link
