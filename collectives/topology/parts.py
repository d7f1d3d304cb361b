"""The parts of a topology: hosts, sites, pairs, and the links that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

DEFAULT_BYTES_PER_S = 125e6  # 1 Gbit/s


DEFAULT_MEMORY_BYTES_PER_S = 5e9


DEFAULT_LATENCY_S = 100e-6


@dataclass(frozen=True)
class Host:
    """Ranks that share memory, and the host's links.

    Attributes:
        name: unlike that of any other host.
        ranks: at least one, ascending.
        up_bytes_per_s, down_bytes_per_s: from the host to the network and back, in payload bytes per second.
        memory_bytes_per_s: what ranks of the host can pass to each other in total.
        latency_s: one way to another host with the same latency; between unlike hosts their mean counts.
    """

    name: str
    ranks: tuple[int, ...]
    up_bytes_per_s: float = DEFAULT_BYTES_PER_S
    down_bytes_per_s: float = DEFAULT_BYTES_PER_S
    memory_bytes_per_s: float = DEFAULT_MEMORY_BYTES_PER_S
    latency_s: float = DEFAULT_LATENCY_S


@dataclass(frozen=True)
class Site:
    """Hosts behind one shared uplink.

    Attributes:
        name: unlike that of any other site.
        hosts: names of its hosts.
        up_bytes_per_s, down_bytes_per_s: out of the site and into it, shared by its hosts.
        latency_s: one way through the uplink, on top of the hosts' own.
    """

    name: str
    hosts: tuple[str, ...]
    up_bytes_per_s: float
    down_bytes_per_s: float
    latency_s: float = 0.0


@dataclass(frozen=True)
class Pair:
    """A limit on what goes from one host to another, where it is lower than the hosts' own links. 0: no way through."""

    source: str
    target: str
    bytes_per_s: float


class Link(NamedTuple):
    """A directed capacity that bytes cross. Name: "up of a", "down of a", "memory of a", "up of site s", "a to b"."""

    name: str
    bytes_per_s: float


PAYLOAD = 0.957
"""Of a link's rate this is left for a TCP connection's payload: 1448 bytes in a packet of 1514."""
