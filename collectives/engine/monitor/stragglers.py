"""Who makes a group wait: from what each rank measured, the rank or the link that costs most.

After LOOK_OPS ops, or ops that should have taken LOOK_S by the plan, which is at the same op on all ranks, the
ranks exchange in one small all-gather how long it has been since the last time and how much of that they were in poll.

A straggler is a rank that waits less than the others: they wait until it comes. What it costs is how much longer they
waited, on average. A slow link is the bottleneck of the plan for most of the ops; what it costs is how much less they
would take by the plan if its host had what is usual in this group. Rank 0 logs whatever costs more than WORTH_NAMING
of the time, once until that changes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import numpy as np
from numpy.typing import NDArray

from collectives.planning.plan import Plan
from collectives.planning.planner import plan
from collectives.schedule.op import Collective, OpSpec
from collectives.topology import Topology

LOOK_OPS, LOOK_S = 256, 3.0
MIN_OPS, MIN_S = 8, 0.5  # what there must be to judge by
WORTH_NAMING = 0.2
logger = logging.getLogger(__name__)


class StragglerDetector:
    """One rank's part in finding out.

    Args:
        names: how to call each rank, such as "rank 3 (host d, pid 71)".
    """

    def __init__(self, rank: int, names: Sequence[str]) -> None:
        self._rank, self._names = rank, names
        self._reported: str | None = None
        self._start_over()

    def is_due(self, spec: OpSpec, in_force: Plan, waited_s: float) -> bool:
        """Note an op; whether the ranks should exchange reports, the same on all of them."""
        self._ops += 1
        if spec.specification.synchronizes:  # in a broadcast its root waits for nobody, however early it came
            self._waited_s += waited_s
        if not spec.specification.counts_are_private:  # whose sizes are each rank's own
            key = (spec.collective, spec.num_bytes, spec.root, spec.codec)
            self._planned_s[key] = self._planned_s.get(key, 0.0) + in_force.predicted_s
        if self._ops < MIN_OPS:
            return False
        return self._ops >= LOOK_OPS or sum(self._planned_s.values()) >= LOOK_S

    def report(self) -> NDArray[np.float64]:
        """Seconds since the last report, and of these in poll, in ops that synchronize."""
        return np.array([time.perf_counter() - self._since, self._waited_s])

    def consider(self, reports: NDArray[np.float64], topology: Topology) -> str | None:
        """From all ranks' reports, one a row: what costs most, None if nothing is worth naming. Rank 0 logs it, so the
        others need not find out: that may mean a plan, which takes some 50 ms of the training's time. (Rank 0's; that
        the others wait for it meanwhile is in their next reports, and far from WORTH_NAMING.)"""
        seconds, waited = float(reports[:, 0].mean()), reports[:, 1]
        found = None
        if self._rank == 0 and seconds >= MIN_S:
            found = self._straggler(seconds, waited) or self._slow_link(seconds, topology)
        self._start_over()
        about = found[0] if found else None
        if about != self._reported:
            if found:
                logger.warning("%s", found[1])
            else:
                logger.warning("%s no longer costs a fifth of the time", self._reported)
        self._reported = about
        return found[1] if found else None

    def _straggler(self, seconds: float, waited: NDArray[np.float64]) -> tuple[str, str] | None:
        if len(waited) < 2:
            return None
        straggler = int(waited.argmin())
        cost = float(np.delete(waited, straggler).mean() - waited[straggler]) / seconds
        if cost <= WORTH_NAMING:
            return None
        name = self._names[straggler]
        return name, f"{name} is a straggler: the others waited for it {cost:.0%} of the last {seconds:.1f} s"

    def _slow_link(self, seconds: float, topology: Topology) -> tuple[str, str] | None:
        if not self._planned_s:
            return None
        key = max(self._planned_s, key=lambda key: (self._planned_s[key], str(key)))
        (collective, num_bytes, root, codec), share = key, min(1.0, self._planned_s[key] / seconds)
        if share <= WORTH_NAMING:
            return None
        in_force = plan(topology, collective, num_bytes, root, codec)
        usual = _with_usual_rates(topology, in_force.bottleneck)
        if usual is None:
            return None
        faster_s = plan(usual, collective, num_bytes, root, codec).predicted_s
        cost = (1 - faster_s / in_force.predicted_s) * share
        if cost <= WORTH_NAMING:
            return None
        link = next(link for link in topology.links if link.name == in_force.bottleneck)
        return str(in_force.bottleneck), (
            f"the link {link.name}, {link.bytes_per_s * 8e-6:.4g} Mbit/s, costs {cost:.0%} of the time: at the rate "
            f"that is usual here {collective} of {num_bytes / 1e6:.3g} MB would take {faster_s * 1e3:.3g} ms "
            f"instead of {in_force.predicted_s * 1e3:.3g}"
        )

    def _start_over(self) -> None:
        self._since = time.perf_counter()
        self._ops, self._waited_s = 0, 0.0
        self._planned_s: dict[tuple[Collective, int, int | None, str], float] = {}


def _with_usual_rates(topology: Topology, bottleneck: str | None) -> Topology | None:
    """The same topology where the host whose link that is has no less than the median of all hosts; None if it has."""
    up = median(host.up_bytes_per_s for host in topology.hosts)
    down = median(host.down_bytes_per_s for host in topology.hosts)
    for index, host in enumerate(topology.hosts):
        if bottleneck not in (f"up of {host.name}", f"down of {host.name}"):
            continue
        better = replace(
            host, up_bytes_per_s=max(up, host.up_bytes_per_s), down_bytes_per_s=max(down, host.down_bytes_per_s)
        )
        if better == host:
            return None
        return replace(topology, hosts=(*topology.hosts[:index], better, *topology.hosts[index + 1 :]))
    return None
