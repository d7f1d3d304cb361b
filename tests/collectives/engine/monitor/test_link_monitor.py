"""When the ranks plan anew; that they do, on links that change, is tested in the lab."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from collectives.engine.monitor import link_monitor
from collectives.engine.monitor.link_monitor import LinkMonitor
from collectives.planning.plan import Plan
from collectives.planning.planner import plan
from collectives.schedule.op import OpSpec
from collectives.topology import Host, Topology

SPEC = OpSpec("all_reduce", "float32", "sum", None, (25_000_000,))
MIXED = Topology((Host("a", (0,), 9e7, 9e7), Host("b", (1,), 5e7, 5e7), Host("c", (2,), 2e7, 2e7)))


@pytest.mark.parametrize("seed", range(5))
def test_no_plan_is_faster_than_what_planning_is_spared_for(seed: int) -> None:
    draw = random.Random(seed)
    hosts = [
        replace(
            host,
            up_bytes_per_s=host.up_bytes_per_s * draw.uniform(0.5, 1.6),
            down_bytes_per_s=host.down_bytes_per_s * draw.uniform(0.5, 1.6),
        )
        for host in MIXED.hosts
    ]
    seen = Topology(tuple(hosts))
    least_s = LinkMonitor(0, MIXED, [])._least_s(plan(MIXED, "all_reduce", SPEC.num_bytes), seen)
    assert 0 < least_s <= plan(seen, "all_reduce", SPEC.num_bytes).predicted_s


@pytest.mark.parametrize(("factor", "planned"), [(1.0, []), (0.95, []), (0.5, ["seen"]), (2.0, ["seen"])])
def test_noise_costs_no_planning(factor: float, planned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate that is read a little lower; one that is half, or twice as high."""
    seen = replace(MIXED, hosts=(*MIXED.hosts[:2], Host("c", (2,), 2e7 * factor, 2e7 * factor)))
    asked: list[str] = []

    def noted(topology: Topology, *arguments: object) -> Plan:
        if topology is seen:
            asked.append("seen")
        return plan(topology, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(link_monitor, "plan", noted)
    monkeypatch.setattr(link_monitor, "estimate_links", lambda *arguments: seen)
    monitor = LinkMonitor(0, MIXED, [])
    assert monitor.is_due(SPEC, plan(MIXED, "all_reduce", SPEC.num_bytes), 9.0)
    monitor.consider(np.zeros((3, 1 + 2 * 3)))
    assert asked == planned
