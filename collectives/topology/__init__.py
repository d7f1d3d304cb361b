"""What is known about a cluster: hosts, sites, and the directed links between them, as plain values."""

from collectives.topology.parts import (
    DEFAULT_BYTES_PER_S,
    DEFAULT_LATENCY_S,
    DEFAULT_MEMORY_BYTES_PER_S,
    PAYLOAD,
    Host,
    Link,
    Pair,
    Site,
)
from collectives.topology.topology import MEMORY_LATENCY_S, Topology

__all__ = [
    "DEFAULT_BYTES_PER_S",
    "DEFAULT_LATENCY_S",
    "DEFAULT_MEMORY_BYTES_PER_S",
    "MEMORY_LATENCY_S",
    "PAYLOAD",
    "Host",
    "Link",
    "Pair",
    "Site",
    "Topology",
]
