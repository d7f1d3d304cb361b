"""The parts of a topology: hosts, sites, pairs, and the links that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

DEFAULT_BYTES_PER_S = 125e6  # 1 Gbit/s
DEFAULT_MEMORY_BYTES_PER_S = 5e9
DEFAULT_LATENCY_S = 100e-6
PAYLOAD = 0.957  # fraction of a link's rate for TCP's payload: 1448 bytes in a packet of 1514


@dataclass(frozen=True)
class Host:
    """Ranks that share memory, and the host's links.

    Attributes:
        name: unique.
        ranks: at least one, ascending.
        up_bytes_per_s, down_bytes_per_s: from the host to the network and back, in payload bytes per second.
        memory_bytes_per_s: what the host's ranks can pass to each other in total.
        latency_s: one way to a host with the same latency; between two hosts their mean.
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
        name: unique.
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
    """A limit from one host to another that is lower than the hosts' own links. 0: they cannot reach each other."""

    source: str
    target: str
    bytes_per_s: float


class Link(NamedTuple):
    """A directed capacity. Names: "up of a", "down of a", "memory of a", "up of site s", "down of site s", "a to b"."""

    name: str
    bytes_per_s: float
