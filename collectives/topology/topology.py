"""Hosts, sites and the links between them: what the planner knows about a cluster. Plain values, JSON in and out.

Every capacity is a directed link, in bytes of payload per second (without the headers of TCP/IP). A slice from one rank
to another crosses the links of its route:

    same host           the host's memory
    different hosts     up of the sender's host, down of the receiver's host, and the pair's link if one is given;
                        between different sites also up of the one site and down of the other

A host in no site is connected to the switch that joins the sites.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from collectives.errors import PlanError
from collectives.topology.json_rows import fields_of, read_rows
from collectives.topology.parts import Host, Link, Pair, Site
from collectives.topology.validate import check, check_known

MEMORY_LATENCY_S = 10e-6  # between two ranks of a host
NARROW = 0.5  # a link is narrow below this fraction of the fastest host's rate


@dataclass(frozen=True)
class Topology:
    """Which rank is on which host, and how fast the links are. Ordered: hosts by lowest rank.

    Raises:
        PlanError: names that are not unique, ranks that are not 0 to n - 1 once each, rates or latencies out of range,
            sites or pairs of unknown hosts. The message begins with the place, such as ``hosts[2].up_bytes_per_s``.
    """

    hosts: tuple[Host, ...]
    sites: tuple[Site, ...] = ()
    pairs: tuple[Pair, ...] = ()

    def __post_init__(self) -> None:
        check(self.hosts, self.sites, self.pairs)
        ordered = sorted((replace(host, ranks=tuple(sorted(host.ranks))) for host in self.hosts), key=lambda h: h.ranks)
        object.__setattr__(self, "hosts", tuple(ordered))

    @classmethod
    def from_hosts(cls, names: Sequence[str]) -> Topology:
        """A topology with equal default links; `names` holds the name of each rank's host, in rank order."""
        ranks: dict[str, list[int]] = {}
        for rank, name in enumerate(names):
            ranks.setdefault(name, []).append(rank)
        return cls(tuple(Host(name, tuple(members)) for name, members in ranks.items()))

    def seated(self, hosts: Sequence[str]) -> Topology:
        """The same links with other ranks: `hosts` holds the name of each rank's host; hosts not named are dropped.

        Raises:
            PlanError: a name that no host has.
        """
        ranks: dict[str, list[int]] = {}
        for rank, name in enumerate(hosts):
            check_known(name, self.hosts, f"rank {rank}")
            ranks.setdefault(name, []).append(rank)
        sites = [replace(site, hosts=tuple(name for name in site.hosts if name in ranks)) for site in self.sites]
        return Topology(
            tuple(replace(host, ranks=tuple(ranks[host.name])) for host in self.hosts if host.name in ranks),
            tuple(site for site in sites if site.hosts),
            tuple(pair for pair in self.pairs if pair.source in ranks and pair.target in ranks),
        )

    @cached_property
    def size(self) -> int:
        """Number of ranks."""
        return len(self._host_indices)

    @cached_property
    def _host_indices(self) -> tuple[int, ...]:
        found = {rank: index for index, host in enumerate(self.hosts) for rank in host.ranks}
        return tuple(found[rank] for rank in range(len(found)))

    def host_index(self, rank: int) -> int:
        """Position of the rank's host in `hosts`."""
        return self._host_indices[rank]

    def host_of(self, rank: int) -> Host:
        return self.hosts[self._host_indices[rank]]

    @cached_property
    def homes(self) -> tuple[tuple[int, int], ...]:
        """For each rank the position of its site in `site_groups` and of its host in `hosts`."""
        group_of = {host: group for group, members in enumerate(self.site_groups) for host in members}
        return tuple((group_of[host], host) for host in self._host_indices)

    def site_of(self, host_index: int) -> Site | None:
        """The site of the host at that position in `hosts`."""
        site = self._site_indices[host_index]
        return None if site is None else self.sites[site]

    @cached_property
    def _site_indices(self) -> tuple[int | None, ...]:
        """For each host the position of its site in `sites`, or None."""
        found = {name: index for index, site in enumerate(self.sites) for name in site.hosts}
        return tuple(found.get(host.name) for host in self.hosts)

    @cached_property
    def site_groups(self) -> tuple[tuple[int, ...], ...]:
        """Host indices by site, in order of lowest rank; a host in no site is a group of its own."""
        groups: dict[tuple[str, int], list[int]] = {}
        for index, site in enumerate(self._site_indices):
            groups.setdefault(("host", index) if site is None else ("site", site), []).append(index)
        return tuple(tuple(group) for group in groups.values())

    @cached_property
    def links(self) -> tuple[Link, ...]:
        """Every link: up, down and memory of each host, then up and down of each site, then the pairs."""
        links = []
        for host in self.hosts:
            links.append(Link(f"up of {host.name}", host.up_bytes_per_s))
            links.append(Link(f"down of {host.name}", host.down_bytes_per_s))
            links.append(Link(f"memory of {host.name}", host.memory_bytes_per_s))
        for site in self.sites:
            links.append(Link(f"up of site {site.name}", site.up_bytes_per_s))
            links.append(Link(f"down of site {site.name}", site.down_bytes_per_s))
        links.extend(Link(f"{pair.source} to {pair.target}", pair.bytes_per_s) for pair in self.pairs)
        return tuple(links)

    @cached_property
    def is_narrow(self) -> tuple[bool, ...]:
        """For each link whether it has less than NARROW times the rate of the fastest host's link to the network.

        A site's links are divided by the number of its hosts. Memory and dead pairs are never narrow.
        """
        least = NARROW * max(max(host.up_bytes_per_s, host.down_bytes_per_s) for host in self.hosts)
        narrow = [False] * len(self.links)
        for i, host in enumerate(self.hosts):
            narrow[3 * i], narrow[3 * i + 1] = host.up_bytes_per_s < least, host.down_bytes_per_s < least
        for i, site in enumerate(self.sites):
            first = 3 * len(self.hosts) + 2 * i
            narrow[first] = site.up_bytes_per_s / len(site.hosts) < least
            narrow[first + 1] = site.down_bytes_per_s / len(site.hosts) < least
        for i, pair in enumerate(self.pairs, start=len(self.links) - len(self.pairs)):
            narrow[i] = 0 < pair.bytes_per_s < least
        return tuple(narrow)

    @cached_property
    def narrow_between(self) -> npt.NDArray[np.bool_]:
        """Whether the route from one host to another or back has a narrow link. Shape (hosts, hosts), symmetric."""
        n = len(self.hosts)
        first_ranks = np.array([host.ranks[0] for host in self.hosts])
        routes = self.routes(np.repeat(first_ranks, n), np.tile(first_ranks, n))
        found: npt.NDArray[np.bool_] = np.array([*self.is_narrow, False])[routes].any(axis=1).reshape(n, n)
        return found | found.T

    def route(self, source: int, target: int) -> tuple[int, ...]:
        """The links, as positions in `links`, that bytes from rank `source` to rank `target` cross.

        An edge (child, parent) of a tree takes route(child, parent) up and route(parent, child) down.
        """
        crossed = self.routes(np.array([source]), np.array([target]))[0]
        return tuple(int(link) for link in crossed if link < len(self.links))

    def routes(self, sources: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """`route` for many: a row for each source and target, padded with len(links). Shape (number of sources, 5)."""
        a, b = self.hosts_of_ranks[sources], self.hosts_of_ranks[targets]
        routes = np.full((len(a), 5), len(self.links), np.int64)
        apart = a != b
        routes[:, 0] = np.where(apart, 3 * a, 3 * a + 2)
        routes[apart, 1] = 3 * b[apart] + 1
        if self.sites:
            from_site, to_site = self._sites_of_hosts[a], self._sites_of_hosts[b]
            first = 3 * len(self.hosts)
            leaves, enters = (from_site != to_site) & (from_site >= 0), (from_site != to_site) & (to_site >= 0)
            routes[leaves, 2] = first + 2 * from_site[leaves]
            routes[enters, 3] = first + 2 * to_site[enters] + 1
        if self.pairs:
            routes[:, 4] = self._pair_links[a, b]
        return routes

    @cached_property
    def hosts_of_ranks(self) -> npt.NDArray[np.int64]:
        """`host_index` of every rank."""
        return np.array(self._host_indices, np.int64)

    @cached_property
    def _sites_of_hosts(self) -> npt.NDArray[np.int64]:
        return np.array([-1 if site is None else site for site in self._site_indices], np.int64)

    @cached_property
    def _pair_links(self) -> npt.NDArray[np.int64]:
        """For each source and target host the position of the pair's link, len(links) where there is none."""
        found = np.full((len(self.hosts),) * 2, len(self.links), np.int64)
        index = {host.name: i for i, host in enumerate(self.hosts)}
        for position, pair in enumerate(self.pairs, start=len(self.links) - len(self.pairs)):
            found[index[pair.source], index[pair.target]] = position
        return found

    def latency_s(self, source: int, target: int) -> float:
        """Seconds of an empty slice from one rank to the other; the same in both directions."""
        return float(self._latencies[self._host_indices[source], self._host_indices[target]])

    def latencies_s(self, sources: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """`latency_s` for many. Shape (number of sources,)."""
        found: npt.NDArray[np.float64] = self._latencies[self.hosts_of_ranks[sources], self.hosts_of_ranks[targets]]
        return found

    @property
    def longest_latency_s(self) -> float:
        """The largest `latency_s` between two hosts; 0 if there is only one."""
        return float(self._latencies.max()) if len(self.hosts) > 1 else 0.0

    @cached_property
    def _latencies(self) -> npt.NDArray[np.float64]:
        """Seconds between hosts, one way; shape (hosts, hosts)."""
        own = np.array([host.latency_s for host in self.hosts])
        seconds: npt.NDArray[np.float64] = (own[:, None] + own[None, :]) / 2
        if self.sites:
            at = self._sites_of_hosts
            uplink = np.array([*(site.latency_s for site in self.sites), 0.0])[at]  # -1, in no site, takes the last
            seconds = seconds + np.where(at[:, None] != at[None, :], uplink[:, None] + uplink[None, :], 0.0)
        np.fill_diagonal(seconds, MEMORY_LATENCY_S)
        return seconds

    def to_json(self) -> str:
        """The text that `from_json` reads: an object with hosts, and with sites and pairs if there are any."""
        parts = {key: rows for key, rows in asdict(self).items() if rows}
        lines = [f'  "{key}": [\n    ' + ",\n    ".join(map(json.dumps, rows)) + "\n  ]" for key, rows in parts.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str, source: str = "topology") -> Topology:
        """Read what `to_json` wrote; rates and latencies of hosts may be left out.

        Raises:
            PlanError: the message has `source`, the place in it, what was found and what was wanted.
        """
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"{source}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
        try:
            parts = fields_of(cls, document, "the file")
            return cls(
                hosts=read_rows(Host, parts["hosts"], "hosts"),
                sites=read_rows(Site, parts.get("sites", []), "sites"),
                pairs=read_rows(Pair, parts.get("pairs", []), "pairs"),
            )
        except PlanError as error:
            raise PlanError(f"{source}: {error}") from None

    @classmethod
    def load(cls, path: str | Path) -> Topology:
        """Read a topology file.

        Raises:
            PlanError: as `from_json`.
            OSError: the file cannot be read.
        """
        return cls.from_json(Path(path).read_text(encoding="utf-8"), str(path))

    def fingerprint(self) -> int:
        """32 bits, equal for topologies whose numbers are equal to six digits."""

        def six_digits(number: str) -> str:
            return f"{float(number):.6g}"

        values = json.loads(json.dumps(asdict(self)), parse_float=six_digits, parse_int=six_digits)
        return zlib.crc32(json.dumps(values, sort_keys=True).encode())
