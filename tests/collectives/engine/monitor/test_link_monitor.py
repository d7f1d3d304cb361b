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
from collectives.schedule.codec import codec_of
from collectives.schedule.op import OpSpec
from collectives.topology import Host, Topology

SPEC = OpSpec("all_reduce", "float32", "sum", None, (25_000_000,))
NEARLY = [("a", 1e8), ("b", 1e8), ("c", 1e8), ("d", 5.5e7)]
NEARLY_NARROW = Topology(tuple(Host(name, (i,), rate, rate) for i, (name, rate) in enumerate(NEARLY)))
MIXED = Topology((Host("a", (0,), 9e7, 9e7), Host("b", (1,), 5e7, 5e7), Host("c", (2,), 2e7, 2e7)))


@pytest.mark.parametrize("codec", ["none", "int4", "narrow-int8", "narrow-int4"])
@pytest.mark.parametrize("seed", range(5))
def test_no_plan_is_faster_than_what_planning_is_spared_for(seed: int, codec: str) -> None:
    """Also where a link becomes narrow (below half of the fastest host's), or is so no longer, and so other slices are
    encoded."""
    draw = random.Random(seed)
    for before in (MIXED, NEARLY_NARROW):
        hosts = [
            replace(
                host,
                up_bytes_per_s=host.up_bytes_per_s * draw.uniform(0.5, 1.6),
                down_bytes_per_s=host.down_bytes_per_s * draw.uniform(0.5, 1.6),
            )
            for host in before.hosts
        ]
        seen = Topology(tuple(hosts))
        in_force = plan(before, "all_reduce", SPEC.num_bytes, None, codec)
        least_s = LinkMonitor(0, before, [])._least_s(in_force, seen, codec_of(codec))
        assert 0 < least_s <= plan(seen, "all_reduce", SPEC.num_bytes, None, codec).predicted_s


def test_a_link_that_becomes_narrow_has_the_ranks_plan_anew() -> None:
    """Its slices are encoded from then on, which the bound of the plan in force knows nothing of."""
    slower = replace(NEARLY_NARROW, hosts=(*NEARLY_NARROW.hosts[:3], Host("d", (3,), 4.5e7, 4.5e7)))
    in_force = plan(NEARLY_NARROW, "all_reduce", SPEC.num_bytes, None, "narrow-int4")
    least_s = LinkMonitor(0, NEARLY_NARROW, [])._least_s(in_force, slower, codec_of("narrow-int4"))
    better_s = plan(slower, "all_reduce", SPEC.num_bytes, None, "narrow-int4").predicted_s
    assert least_s <= better_s < in_force.predicted_s / 2


@pytest.mark.parametrize(("factor", "planned"), [(1.0, []), (0.95, []), (0.5, []), (2.0, ["seen"])])
def test_noise_costs_no_planning(factor: float, planned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate of the host that all wait for in any plan is read a little lower, or half of what it was; or twice as
    high."""
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
