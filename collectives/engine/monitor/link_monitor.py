"""Watches the links while training goes on, and says when another plan would be faster.

Long ops are watched: how long they took, and what the kernel counts for each connection. Once they should have taken
LOOK_S seconds by the plan, which is at the same op on all ranks, the ranks exchange what they counted, in one
small all-gather, and each works out the links' rates from that (`link_estimator.py`). If twice in a row the best plan
for those would take GAIN less time than the one in force, all ranks take it from the next op on. Each switch makes the
next one take twice the patience, up to a limit, so that links that come and go do not have the ranks plan all the time.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from collectives.engine.monitor.link_estimator import Traffic, changes, estimate_links
from collectives.planning.cost import bound_s, cost
from collectives.planning.plan import Plan
from collectives.planning.planner import plan
from collectives.schedule.codec import Codec, codec_of
from collectives.schedule.op import Collective, OpSpec
from collectives.topology import Topology
from collectives.transport import tcp

LONG_S = 0.02  # ops that should take less are mostly latency
LOOK_S = 1.0
GAIN = 1.10
PATIENCE, MAX_PATIENCE = 2, 32
logger = logging.getLogger(__name__)


class LinkMonitor:
    """One rank's watch over a group's links.

    Args:
        topology: what was measured or given.
        connections: the group's streams, with their peers' ranks.
    """

    def __init__(self, rank: int, topology: Topology, connections: Iterable[tuple[int, socket.socket]]) -> None:
        self._rank, self._measured, self.topology = rank, topology, topology
        self._connections = list(connections)
        self._before = self._counts()
        self._seconds = self._planned_s = 0.0
        self._common: dict[tuple[Collective, int, int | None, str], float] = {}
        self._in_a_row, self._patience = 0, PATIENCE

    def is_due(self, spec: OpSpec, in_force: Plan, seconds: float) -> bool:
        """Note an op that took `seconds`; whether the ranks should exchange reports, the same on all of them."""
        planned_s = in_force.predicted_s
        if planned_s >= LONG_S and not spec.specification.counts_are_private:
            key = (spec.collective, spec.num_bytes, spec.root, spec.codec)
            self._common[key] = self._common.get(key, 0.0) + planned_s
            self._planned_s += planned_s
            self._seconds += seconds
        return self._planned_s >= LOOK_S

    def report(self) -> NDArray[np.float64]:
        """What this rank counted since the last report: seconds, then bytes and busy seconds for each peer."""
        now = self._counts()
        report = np.concatenate(([self._seconds], (now - self._before).ravel()))
        self._before = now
        return report

    def consider(self, reports: NDArray[np.float64]) -> Topology | None:
        """From all ranks' reports, one a row: the topology to plan with from now on, None if it stays.

        Every rank must be given the same reports and then decides alike.
        """
        size = self.topology.size
        counts = reports[:, 1:].reshape(size, 2, size)
        traffic = Traffic(float(reports[:, 0].max()), self._planned_s, counts[:, 0], counts[:, 1])
        collective, num_bytes, root, codec = max(self._common, key=lambda key: (self._common[key], str(key)))
        self._common.clear()
        self._seconds = self._planned_s = 0.0
        seen = estimate_links(self.topology, self._measured, traffic)
        in_force = plan(self.topology, collective, num_bytes, root, codec)
        stays_s = cost(seen, in_force.forest, codec).seconds(num_bytes)
        if stays_s <= GAIN * self._least_s(in_force, seen, codec_of(codec)):
            self._in_a_row = 0
            return None
        better = plan(seen, collective, num_bytes, root, codec)
        self._in_a_row = self._in_a_row + 1 if stays_s > GAIN * better.predicted_s else 0
        if self._in_a_row < self._patience:
            return None
        if self._rank == 0:
            logger.warning(
                "the links have changed (%s): planning anew; %s of %d bytes should take %.1f ms instead of %.1f",
                "; ".join(changes(self.topology, seen)) or "a little each", collective, num_bytes,
                better.predicted_s * 1e3, stays_s * 1e3,
            )  # fmt: skip
        self._in_a_row, self._patience = 0, min(MAX_PATIENCE, 2 * self._patience)
        self.topology = seen
        return seen

    def _least_s(self, in_force: Plan, seen: Topology, codec: Codec) -> float:
        """Seconds below which no plan for the links as they are seen can be; 0 if nothing is known of that.

        Planning takes every rank some 50 ms, on the training's time, and noise is seen more often than change. The
        bound from the bytes of each host is quick. That of the plan in force may be higher. If all links were f times
        as fast it would be f times as small, so no change of some by up to f makes it smaller, as long as the same
        links are encoded.
        """
        quick = bound_s(seen, in_force.forest.collective, in_force.num_bytes, in_force.forest.root) or 0.0
        least = quick / codec.ratio
        if codec.narrow_only and not np.array_equal(seen.narrow_between, self.topology.narrow_between):
            return least
        links = zip(seen.links, self.topology.links, strict=True)
        factors = [now.bytes_per_s / was.bytes_per_s if was.bytes_per_s > 0 else math.inf for now, was in links]
        return max(least, (in_force.bound_s or 0.0) / max(1.0, *factors))

    def _counts(self) -> NDArray[np.float64]:
        """Bytes (row 0) and busy seconds (row 1) to each peer so far. Streams of a peer are busy side by side."""
        counts = np.zeros((2, self.topology.size))
        streams = np.zeros(self.topology.size)
        for peer, connection in self._connections:
            num_bytes, busy_s = tcp.sent_so_far(connection)
            counts[:, peer] += (num_bytes, busy_s)
            streams[peer] += 1
        counts[1] /= np.maximum(streams, 1)
        return counts
